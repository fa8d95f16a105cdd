// Ordered queues of copies, with the two edges every asynchronous copy needs.
//
// To submit a copy is to say who made its source (the first edge); to read its destination one
// needs its ticket (the second). There is no default for either, so a copy without them does not
// compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "vidgen/arena.h"

namespace vidgen {

// A copy under way.
class Ticket : public Event {
 public:
  // Holds the calling thread until the copy is complete, and throws what made it fail, if anything
  // did. `interrupted` is called now and then and may throw.
  virtual void wait(const std::function<void()>& interrupted = {}) = 0;
  // Makes what is put on a CUDA stream from now on wait for the copy; the calling thread goes on.
  virtual void wait_on_stream(void* stream) = 0;
};

// Who last wrote a copy's source or used its destination.
class Producer {
 public:
  // The calling thread, and it has done so already.
  static Producer host() { return Producer(nullptr, nullptr, false); }
  // Whatever is on this CUDA stream now (a CUstream, which cudaStream_t is too).
  static Producer stream(void* stream) { return Producer(stream, nullptr, true); }
  // Another copy, of this or another lane.
  static Producer ticket(std::shared_ptr<Ticket> ticket) {
    return Producer(nullptr, std::move(ticket), false);
  }

  bool is_stream() const { return is_stream_; }
  void* cuda_stream() const { return stream_; }
  const std::shared_ptr<Ticket>& copy() const { return ticket_; }

 private:
  Producer(void* stream, std::shared_ptr<Ticket> ticket, bool is_stream)
      : stream_(stream), ticket_(std::move(ticket)), is_stream_(is_stream) {}

  void* stream_;
  std::shared_ptr<Ticket> ticket_;
  bool is_stream_;
};

// What lives until a copy is complete: the owner of its source, of its destination.
using Keep = std::shared_ptr<void>;

class Lane {
 public:
  virtual ~Lane() = default;
  // The lease, if one is given, is told of the copy; source or destination lies in it.
  virtual std::shared_ptr<Ticket> copy(void* destination, const void* source, std::size_t bytes,
                                       const Producer& producer, Lease* lease, Keep keep) = 0;
  // Lets go of what complete copies kept.
  virtual void reap() {}
};

// Copies late, in an order a seed decides, without a device. Any number of queues, each first in
// first out as a CUDA stream is; which moves next is drawn from the seed, and nothing moves before
// somebody waits or asks: whoever reads a destination or reuses a source without its ticket gets
// wrong bytes.
class SimulatedEngine : public std::enable_shared_from_this<SimulatedEngine> {
 public:
  struct Copy;

  // latency_s: the mean of the seconds a copy takes at least, each drawn from the seed; to which
  // its bytes at bytes_per_s are added (0: they take no time).
  static std::shared_ptr<SimulatedEngine> make(std::uint64_t seed, double latency_s,
                                               double bytes_per_s);
  ~SimulatedEngine();

  int new_queue();
  std::shared_ptr<Ticket> submit(int queue, std::size_t bytes, std::function<void()> run,
                                 const Producer& producer, Keep keep);
  // For tests that explore every order: nothing moves but by move(); which queues could.
  void only_by_hand();
  std::vector<int> movable();
  bool move(int queue);

 private:
  class SimulatedTicket;
  struct State;
  SimulatedEngine(std::uint64_t seed, double latency_s, double bytes_per_s);
  bool poll(const std::shared_ptr<Copy>& copy);
  void wait(const std::shared_ptr<Copy>& copy, const std::function<void()>& interrupted);
  bool advance();
  bool ready(int queue) const;
  void run(int queue, std::unique_lock<std::mutex>& lock);

  std::unique_ptr<State> state_;
};

// `threads` share a large copy.
std::unique_ptr<Lane> make_simulated_lane(std::shared_ptr<SimulatedEngine> engine, int threads = 1);

// A stream of the device, and its events. stream() is a CUstream.
class CudaLane : public Lane {
 public:
  virtual void* stream() const = 0;
};
std::unique_ptr<CudaLane> make_cuda_lane(int device);

}  // namespace vidgen
