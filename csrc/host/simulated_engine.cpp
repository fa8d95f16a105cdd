#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>

#include "vidgen/io.h"
#include "vidgen/lane.h"

namespace vidgen {
namespace {

using Clock = std::chrono::steady_clock;

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

}  // namespace

struct SimulatedEngine::Copy {
  std::function<void()> run;
  std::shared_ptr<Copy> after;
  Clock::time_point due;
  Keep keep;
  bool finished = false;
  std::exception_ptr error;
};

struct SimulatedEngine::State {
  struct Queue {
    std::deque<std::shared_ptr<Copy>> copies;
    Clock::time_point due{};  // of the last one
    bool busy = false;        // its first is being copied
  };

  std::mutex mutex;
  std::condition_variable moved;
  std::vector<Queue> queues;
  std::mt19937_64 random;
  double latency_s, bytes_per_s;
  bool by_hand = false;
  pid_t owner;

  double draw() { return static_cast<double>(random() >> 11) * 0x1p-53; }  // [0, 1)
};

class SimulatedEngine::SimulatedTicket : public Ticket {
 public:
  SimulatedTicket(std::shared_ptr<SimulatedEngine> engine, std::shared_ptr<Copy> copy)
      : engine_(std::move(engine)), copy_(std::move(copy)) {}

  bool done() override { return engine_->poll(copy_); }
  void wait(const std::function<void()>& interrupted) override {
    engine_->wait(copy_, interrupted);
    if (copy_->error) std::rethrow_exception(copy_->error);
  }
  void wait_on_stream(void*) override {
    throw std::invalid_argument("a copy on the CPU is read by HOST; it has no stream to wait on");
  }

  const std::shared_ptr<SimulatedEngine> engine_;
  const std::shared_ptr<Copy> copy_;
};

std::shared_ptr<SimulatedEngine> SimulatedEngine::make(std::uint64_t seed, double latency_s,
                                                       double bytes_per_s) {
  return std::shared_ptr<SimulatedEngine>(new SimulatedEngine(seed, latency_s, bytes_per_s));
}

SimulatedEngine::SimulatedEngine(std::uint64_t seed, double latency_s, double bytes_per_s)
    : state_(new State) {
  state_->random.seed(seed);
  state_->latency_s = latency_s;
  state_->bytes_per_s = bytes_per_s;
  state_->owner = getpid();
}

SimulatedEngine::~SimulatedEngine() = default;

int SimulatedEngine::new_queue() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->queues.emplace_back();
  return static_cast<int>(state_->queues.size()) - 1;
}

std::shared_ptr<Ticket> SimulatedEngine::submit(int queue, std::size_t bytes,
                                                std::function<void()> run, const Producer& producer,
                                                Keep keep) {
  if (getpid() != state_->owner) throw LeaseError("a forked child cannot use its parent's lanes");
  if (producer.is_stream()) {
    throw std::invalid_argument("a lane without a CUDA device cannot wait for a stream");
  }
  auto copy = std::make_shared<Copy>();
  copy->run = std::move(run);
  copy->keep = std::move(keep);
  if (producer.copy() != nullptr) {
    const auto ours = std::dynamic_pointer_cast<SimulatedTicket>(producer.copy());
    if (ours != nullptr && ours->engine_.get() == this) {
      copy->after = ours->copy_;
    } else {
      producer.copy()->wait();  // this engine cannot see that copy end
    }
  }
  std::lock_guard<std::mutex> lock(state_->mutex);
  State::Queue& line = state_->queues.at(static_cast<std::size_t>(queue));
  Clock::time_point start = std::max(Clock::now(), line.due);
  if (copy->after != nullptr) start = std::max(start, copy->after->due);
  double takes = 2 * state_->latency_s * state_->draw();
  if (state_->bytes_per_s > 0) takes += static_cast<double>(bytes) / state_->bytes_per_s;
  copy->due = line.due = start + seconds(takes);
  line.copies.push_back(copy);
  return std::make_shared<SimulatedTicket>(shared_from_this(), std::move(copy));
}

bool SimulatedEngine::ready(int queue) const {
  const State::Queue& line = state_->queues[static_cast<std::size_t>(queue)];
  if (line.copies.empty() || line.busy) return false;
  const Copy& first = *line.copies.front();
  return first.due <= Clock::now() && (first.after == nullptr || first.after->finished);
}

// Carries out the first copy of a queue, with the lock open meanwhile.
void SimulatedEngine::run(int queue, std::unique_lock<std::mutex>& lock) {
  const auto index = static_cast<std::size_t>(queue);
  const std::shared_ptr<Copy> copy = state_->queues[index].copies.front();
  state_->queues[index].busy = true;
  lock.unlock();
  std::exception_ptr error;
  try {
    copy->run();
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  copy->error = error;
  copy->finished = true;
  copy->after.reset();  // or a chain of copies would live as long as its last
  state_->queues[index].busy = false;
  state_->queues[index].copies.pop_front();
  const auto run = std::move(copy->run);
  const Keep keep = std::move(copy->keep);
  state_->moved.notify_all();
  lock.unlock();  // `keep` goes with the lock open: it may be anything, even Python
}

bool SimulatedEngine::advance() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  std::vector<int> ready_queues;
  for (int queue = 0; queue < static_cast<int>(state_->queues.size()); ++queue) {
    if (ready(queue)) ready_queues.push_back(queue);
  }
  if (ready_queues.empty()) return false;
  run(ready_queues[state_->random() % ready_queues.size()], lock);
  return true;
}

void SimulatedEngine::only_by_hand() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->by_hand = true;
}

std::vector<int> SimulatedEngine::movable() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<int> found;
  for (int queue = 0; queue < static_cast<int>(state_->queues.size()); ++queue) {
    if (ready(queue)) found.push_back(queue);
  }
  return found;
}

bool SimulatedEngine::move(int queue) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  if (!ready(queue)) return false;
  run(queue, lock);
  return true;
}

// Lets some queue move, or none; says whether `copy` is finished.
bool SimulatedEngine::poll(const std::shared_ptr<Copy>& copy) {
  bool go;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    if (copy->finished) return true;
    go = !state_->by_hand && state_->draw() < 0.5;
  }
  if (go) advance();
  std::lock_guard<std::mutex> lock(state_->mutex);
  return copy->finished;
}

void SimulatedEngine::wait(const std::shared_ptr<Copy>& copy,
                           const std::function<void()>& interrupted) {
  auto asked = Clock::now();
  for (;;) {
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      if (copy->finished) return;
    }
    if (!advance()) {
      std::unique_lock<std::mutex> lock(state_->mutex);
      if (copy->finished) return;
      state_->moved.wait_for(lock, std::chrono::microseconds(100));
    }
    if (interrupted && Clock::now() - asked > std::chrono::milliseconds(50)) {
      asked = Clock::now();
      interrupted();
    }
  }
}

namespace {

constexpr std::size_t kLarge = std::size_t{1} << 20;  // bytes; a smaller copy is for the cache

class SimulatedLane : public Lane {
 public:
  SimulatedLane(std::shared_ptr<SimulatedEngine> engine, int threads)
      : engine_(std::move(engine)), queue_(engine_->new_queue()), threads_(threads) {}

  std::shared_ptr<Ticket> copy(void* destination, const void* source, std::size_t bytes,
                               const Producer& producer, Lease* lease, Keep keep) override {
    if (lease != nullptr) lease->data();  // refuses one that was given back, ahead of the copy
    const auto run = [=, threads = threads_] {
      if (bytes < kLarge) {
        std::memcpy(destination, source, bytes);
      } else {
        io::copy_all({{static_cast<unsigned char*>(destination),
                       static_cast<const unsigned char*>(source), bytes}},
                     threads);
      }
    };
    auto ticket = engine_->submit(queue_, bytes, run, producer, std::move(keep));
    if (lease != nullptr) lease->used_by(ticket);
    return ticket;
  }

 private:
  const std::shared_ptr<SimulatedEngine> engine_;
  const int queue_;
  const int threads_;
};

}  // namespace

std::unique_ptr<Lane> make_simulated_lane(std::shared_ptr<SimulatedEngine> engine, int threads) {
  return std::make_unique<SimulatedLane>(std::move(engine), threads);
}

}  // namespace vidgen
