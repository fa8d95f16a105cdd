#include "host/io_crew.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

namespace vidgen::io {

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    File old(release());
    descriptor_ = other.release();
  }
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) close(descriptor_);
}

int File::release() {
  const int descriptor = descriptor_;
  descriptor_ = -1;
  return descriptor;
}

Crew::Watch Crew::watch(const char* call, const std::string& path, uint64_t offset,
                        uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  operations_.push_back({call, &path, offset, bytes, std::chrono::steady_clock::now()});
  return std::prev(operations_.end());
}

void Crew::unwatch(Watch operation) {
  std::lock_guard<std::mutex> lock(mutex_);
  operations_.erase(operation);
}

int64_t Crew::allowed(const char* call, const std::string& path, uint64_t offset,
                      uint64_t bytes) const {
  return settings.hook ? settings.hook(call, path, offset, bytes) : static_cast<int64_t>(bytes);
}

int64_t Crew::call(const char* name, const std::string& path, uint64_t offset, uint64_t bytes,
                   const std::function<int64_t(uint64_t)>& real) {
  const Watch watched = watch(name, path, offset, bytes);
  int64_t result;
  for (;;) {
    result = allowed(name, path, offset, bytes);
    // The hook may have outlived the caller's timeout, and so the caller's memory.
    if (stopped) result = -ECANCELED;
    if (result >= 0) result = real(static_cast<uint64_t>(result));
    if ((result != -EINTR && result != -EAGAIN) || stopped) break;
    retried++;
    if (result == -EAGAIN) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  unwatch(watched);
  return result;
}

bool Crew::must(const char* name, const std::string& path, const std::function<int()>& real) {
  const int64_t result = call(name, path, 0, 0, [&](uint64_t) {
    const int status = real();
    return static_cast<int64_t>(status < 0 ? -errno : status);
  });
  if (result < 0) {
    const int code = static_cast<int>(-result);
    fail(code, path, std::string(name) + ": " + std::strerror(code));
  }
  return result >= 0;
}

void Crew::fail(int code, const std::string& path, const std::string& what) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_ == nullptr) failure_ = std::make_unique<Error>(code, path, what);
  stopped = true;
}

void Crew::fail_transfer(const char* call, int code, const std::string& path, uint64_t offset,
                         uint64_t bytes) {
  fail(code, path,
       std::string(call) + " of " + std::to_string(bytes) + " bytes at offset " +
           std::to_string(offset) + ": " + std::strerror(code));
}

void Crew::report(Statistics* statistics) const {
  statistics->bytes += bytes;
  statistics->direct += direct;
  statistics->continued += continued;
  statistics->retried += retried;
}

void Crew::check_stuck() {
  if (operations_.empty()) return;
  const Operation& oldest = operations_.front();
  const std::chrono::duration<double> age = std::chrono::steady_clock::now() - oldest.since;
  if (age.count() <= settings.timeout_s) return;
  stopped = true;
  throw Error(ETIMEDOUT, *oldest.path,
              std::string(oldest.call) + " of " + std::to_string(oldest.bytes) +
                  " bytes at offset " + std::to_string(oldest.offset) + " is stuck: no answer in " +
                  std::to_string(static_cast<int64_t>(age.count())) + " s");
}

void Crew::run(const std::shared_ptr<Crew>& job, int threads, std::function<void()> work) {
  const auto member = [job, work] {
    try {
      work();
    } catch (const Error& error) {
      job->fail(error.code, error.path, error.what());
    } catch (const std::exception& error) {
      job->fail(EIO, "", error.what());
    }
    std::lock_guard<std::mutex> lock(job->mutex_);
    if (--job->running_ == 0) job->left_.notify_one();
  };
  std::vector<std::thread> members;
  job->running_ = threads;
  for (int i = 0; i < threads; ++i) {
    try {
      members.emplace_back(member);
    } catch (const std::system_error&) {  // cannot create more threads; continue with fewer
      std::lock_guard<std::mutex> lock(job->mutex_);
      if (i == 0) throw;
      job->running_ -= threads - i;
      break;
    }
  }
  try {
    std::unique_lock<std::mutex> lock(job->mutex_);
    while (!job->left_.wait_for(lock, std::chrono::milliseconds(50),
                                [&] { return job->running_ == 0; })) {
      job->check_stuck();
      if (job->settings.progress) {
        lock.unlock();
        job->settings.progress(job->bytes);
        lock.lock();
      }
    }
  } catch (const Error&) {
    for (std::thread& thread : members) thread.detach();
    throw;
  } catch (...) {  // the caller was interrupted: transfers in flight must end first
    job->stopped = true;
    for (std::thread& thread : members) thread.join();
    throw;
  }
  for (std::thread& thread : members) thread.join();
  if (job->failure_ != nullptr) throw *job->failure_;
}

}  // namespace vidgen::io
