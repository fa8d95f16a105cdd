#include <unistd.h>

#include <atomic>

#include "host/cuda_driver.h"
#include "vidgen/lane.h"

namespace vidgen {
namespace {

// Events are pooled: creating one is too slow within a step.
class EventPool {
 public:
  explicit EventPool(int device) : device_(device), owner_(getpid()) {}
  ~EventPool() {
    if (getpid() != owner_) return;
    for (CudaEvent event : free_) cuda_driver().destroy_event(device_, event);
  }
  CudaEvent take() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        CudaEvent event = free_.back();
        free_.pop_back();
        return event;
      }
    }
    return cuda_driver().make_event(device_);
  }
  void put(CudaEvent event) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(event);
  }
  int device() const { return device_; }

 private:
  const int device_;
  const pid_t owner_;
  std::mutex mutex_;
  std::vector<CudaEvent> free_;
};

class CudaTicket : public Ticket {
 public:
  CudaTicket(std::shared_ptr<EventPool> pool, Keep keep)
      : pool_(std::move(pool)), event_(pool_->take()), keep_(std::move(keep)) {}
  // An event that a stream was made to wait for may be recorded again: the wait is for what was
  // recorded when it was asked for.
  ~CudaTicket() override { pool_->put(event_); }

  bool done() override {
    if (finished_) return true;
    if (!cuda_driver().finished(pool_->device(), event_)) return false;
    finish();
    return true;
  }
  void wait(const std::function<void()>&) override {
    if (finished_) return;
    cuda_driver().wait(pool_->device(), event_);
    finish();
  }
  void wait_on_stream(void* stream) override {
    if (!finished_) cuda_driver().stream_waits(pool_->device(), stream, event_);
  }
  CudaEvent event() const { return event_; }

 private:
  void finish() {
    Keep gone;  // destroyed after unlocking: it may be anything, even Python
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
    gone.swap(keep_);
  }

  const std::shared_ptr<EventPool> pool_;
  const CudaEvent event_;
  std::atomic<bool> finished_{false};
  std::mutex mutex_;
  Keep keep_;
};

class DriverLane : public CudaLane {
 public:
  explicit DriverLane(int device)
      : device_(device),
        owner_(getpid()),
        stream_(cuda_driver().make_stream(device)),
        pool_(std::make_shared<EventPool>(device)) {}
  ~DriverLane() override {
    if (getpid() != owner_) return;
    for (const auto& ticket : under_way_) ticket->wait({});
    cuda_driver().destroy_stream(device_, stream_);
  }

  void* stream() const override { return stream_; }

  std::shared_ptr<Ticket> copy(void* destination, const void* source, std::size_t bytes,
                               const Producer& producer, Lease* lease, Keep keep) override {
    if (getpid() != owner_) throw LeaseError("a forked child cannot use its parent's lanes");
    reap();
    if (lease != nullptr) lease->data();
    auto ticket = std::make_shared<CudaTicket>(pool_, std::move(keep));
    std::lock_guard<std::mutex> one_at_a_time(submit_);
    if (producer.is_stream()) {
      const CudaTicket edge(pool_, nullptr);
      cuda_driver().record(device_, edge.event(), producer.cuda_stream());
      cuda_driver().stream_waits(device_, stream_, edge.event());
    } else if (producer.copy() != nullptr) {
      const auto* other = dynamic_cast<CudaTicket*>(producer.copy().get());
      if (other != nullptr) {
        producer.copy()->wait_on_stream(stream_);
      } else {
        producer.copy()->wait();
      }
    }
    cuda_driver().copy(device_, destination, source, bytes, stream_);
    cuda_driver().record(device_, ticket->event(), stream_);
    if (lease != nullptr) lease->used_by(ticket);
    std::lock_guard<std::mutex> lock(mutex_);
    under_way_.push_back(ticket);
    return ticket;
  }

  void reap() override {
    std::vector<std::shared_ptr<CudaTicket>> gone;  // destroyed after unlocking
    for (;;) {
      std::shared_ptr<CudaTicket> first;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (under_way_.empty()) return;
        first = under_way_.front();
      }
      if (!first->done()) return;
      std::lock_guard<std::mutex> lock(mutex_);
      if (!under_way_.empty() && under_way_.front() == first) under_way_.pop_front();
      gone.push_back(std::move(first));
    }
  }

 private:
  const int device_;
  const pid_t owner_;
  const CudaStream stream_;
  const std::shared_ptr<EventPool> pool_;
  std::mutex submit_;  // the order of the queue is that of the calls
  std::mutex mutex_;
  std::deque<std::shared_ptr<CudaTicket>> under_way_;  // keeps what they keep
};

}  // namespace

std::unique_ptr<CudaLane> make_cuda_lane(int device) {
  return std::make_unique<DriverLane>(device);
}

}  // namespace vidgen
