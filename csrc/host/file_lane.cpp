#include <pthread.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <stdexcept>
#include <thread>

#include "host/file_io.h"
#include "vidgen/lane.h"

namespace vidgen {
namespace {

class FileTicket : public Ticket {
 public:
  bool done() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return finished_;
  }
  void wait(const std::function<void()>& interrupted) override {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::milliseconds(50), [&] { return finished_; })) {
      if (!interrupted) continue;
      lock.unlock();
      interrupted();
      lock.lock();
    }
    if (error_) std::rethrow_exception(error_);
  }
  void wait_on_stream(void*) override {
    throw std::invalid_argument("a read of a file is read by HOST; it has no stream to wait on");
  }
  void finish(std::exception_ptr error) {
    std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::move(error);
    finished_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::exception_ptr error_;
};

class ThreadFileLane : public FileLane {
 public:
  explicit ThreadFileLane(const std::string& name) : owner_(getpid()) {
    worker_ = std::thread([this] { serve(); });
    pthread_setname_np(worker_.native_handle(), name.substr(0, 15).c_str());
  }
  ~ThreadFileLane() override {
    if (getpid() != owner_) {
      worker_.detach();  // a forked child does not have it
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  std::shared_ptr<Ticket> write(FileRange to, const void* source, std::size_t bytes,
                                const Producer& producer, Lease* lease, Keep keep) override {
    const auto file = std::make_shared<OwnFile>(to.file);
    const FileRange range{file->get(), to.offset};
    return submit([=, own = file] { write_all(range, source, bytes); }, producer, lease,
                  std::move(keep));
  }
  std::shared_ptr<Ticket> read(void* destination, FileRange from, std::size_t bytes,
                               const Producer& producer, Lease* lease, Keep keep) override {
    const auto file = std::make_shared<OwnFile>(from.file);
    const FileRange range{file->get(), from.offset};
    return submit([=, own = file] { read_all(destination, range, bytes); }, producer, lease,
                  std::move(keep));
  }

 private:
  struct Task {
    std::function<void()> run;
    std::shared_ptr<Ticket> after;
    std::shared_ptr<FileTicket> ticket;
    Keep keep;
  };

  std::shared_ptr<Ticket> submit(std::function<void()> run, const Producer& producer, Lease* lease,
                                 Keep keep) {
    if (getpid() != owner_) throw LeaseError("a forked child cannot use its parent's lanes");
    if (producer.is_stream()) {
      throw std::invalid_argument(
          "a file lane cannot wait for a stream; bring the bytes to the host through a lane and "
          "pass that copy's ticket");
    }
    auto ticket = std::make_shared<FileTicket>();
    if (lease != nullptr) lease->used_by(ticket);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back({std::move(run), producer.copy(), ticket, std::move(keep)});
    }
    changed_.notify_one();
    return ticket;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      {
        Task task = std::move(tasks_.front());
        tasks_.pop_front();
        lock.unlock();
        std::exception_ptr error;
        try {
          if (task.after != nullptr) task.after->wait();
          task.run();
        } catch (...) {
          error = std::current_exception();
        }
        task.ticket->finish(error);
      }  // what it kept goes with the lock open
      lock.lock();
    }
  }

  const pid_t owner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool closing_ = false;
  std::thread worker_;
};

}  // namespace

std::unique_ptr<FileLane> make_file_lane(const std::string& name) {
  return std::make_unique<ThreadFileLane>(name);
}

}  // namespace vidgen
