// Host memory registered once, lent in exact sizes, taken back when an event says so.
//
// A lease is used until give_back(). Its bytes are lent again only when every event it was told of
// has come and the last view of it is gone, so neither a copy under way nor a kept view ever sees
// somebody else's bytes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "vidgen/free_pieces.h"

namespace vidgen {

// A lease was used against its rules: returned early or twice, leaked, or used afterwards.
class LeaseError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// No room came free in time; the message names who holds what.
class ArenaTimeout : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the return of a lease may wait for. done() may be called from any thread, and once it has
// said yes it says so for ever.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool done() = 0;
};

struct ArenaOptions {
  std::size_t bytes = 0;
  std::string name = "arena";
  bool pinned = false;  // page-locked for the CUDA device `device`
  bool shared = false;  // a memfd, so that other processes can map it
  int device = 0;
  int numa_node = -1;  // where the pages should lie; -1: wherever they are first touched
};

struct ArenaStats {
  std::size_t bytes = 0;
  std::size_t held = 0;  // on loan, or waiting for an event or a view to go
  std::size_t high_water = 0;
  std::uint64_t leases = 0;  // given out since the start
  std::uint64_t waits = 0;   // of those, how many had to wait for room
  double waited_s = 0;       // how long they did, all together
  std::size_t largest_free = 0;
  std::size_t lendable = 0;  // what largest_free will be once all but the views kept is returned
  std::uint64_t registrations = 0;  // page-lockings
  bool huge_pages = false;  // from the reserved pool; transparent ones are the kernel's choice
};

class Arena;
class Region;

// The arena's record of a lease. It outlives the lease, so that a leak can be told.
struct Loan {
  std::uint64_t number = 0;
  std::size_t offset = 0;
  std::size_t size = 0;  // what the arena gave: the bytes asked for, rounded up to kGrain
  std::string what, place;
  std::chrono::steady_clock::time_point taken;
  std::vector<std::shared_ptr<Event>> events;
  int views = 0;
  bool returned = false;
};

// Keeps a lease's bytes from being lent again while it lives, whatever happens to the lease.
class View {
 public:
  View(std::shared_ptr<Arena> arena, std::shared_ptr<Region> region, std::shared_ptr<Loan> loan,
       std::size_t bytes);
  ~View();
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  unsigned char* data() const;
  std::size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Arena> arena_;
  std::shared_ptr<Region> region_;
  std::shared_ptr<Loan> loan_;
  std::size_t bytes_;
};

class Lease {
 public:
  Lease(std::shared_ptr<Arena> arena, std::shared_ptr<Loan> loan, std::size_t bytes);
  ~Lease();  // a lease that was never given back is a leak: the arena's next user is told
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  std::size_t bytes() const { return bytes_; }
  std::size_t offset() const { return loan_->offset; }  // from the start of the arena
  const std::shared_ptr<Arena>& arena() const { return arena_; }

  unsigned char* data() const;  // until give_back()
  std::shared_ptr<View> view();
  // Notes a copy from or to this piece; lanes do so for every copy they are given.
  void used_by(std::shared_ptr<Event> event);
  // Returns it once `after` and every event noted has come. Without `after` they must have come
  // already: anything else is an error, as a second return is.
  void give_back(std::shared_ptr<Event> after = nullptr);
  // Gives its whole pages back to the machine until they are written again; they read as zeros
  // then. Page-locked memory and huge pages stay.
  void drop_pages();

 private:
  std::shared_ptr<Arena> arena_;
  std::shared_ptr<Loan> loan_;
  std::size_t bytes_;
};

// A place in the queue of those who wait for room: first come, first served, whatever the sizes.
class Place {
 public:
  ~Place();
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  // A lease if this place is the first one and there is room; then the place is free for the next.
  std::unique_ptr<Lease> try_take();

 private:
  friend class Arena;
  Place(std::shared_ptr<Arena> arena, std::size_t bytes, std::size_t align, std::string what,
        std::string place);

  std::shared_ptr<Arena> arena_;
  std::size_t bytes_, align_;
  std::string what_, place_;
  std::chrono::steady_clock::time_point joined_;
  bool waits_ = true;
};

class Arena : public std::enable_shared_from_this<Arena> {
 public:
  static constexpr std::size_t kGrain = 256;  // bytes: what vector units and copy engines like
  static constexpr double kForEver = -1;      // a timeout
  static std::shared_ptr<Arena> make(const ArenaOptions& options);
  ~Arena();

  // Waits up to `timeout_s` for `bytes` in one piece, at an address that is a multiple of `align`
  // (a power of two up to 4096, which is what O_DIRECT asks for). `place` is where in the caller's
  // program this is; `interrupted` is called now and then while waiting and may throw. Nobody
  // overtakes those who wait already.
  std::unique_ptr<Lease> take(std::size_t bytes, std::size_t align, double timeout_s,
                              std::string what, std::string place,
                              const std::function<void()>& interrupted = {});
  // What `take` does, for who waits otherwise.
  std::unique_ptr<Place> queue(std::size_t bytes, std::size_t align, std::string what,
                               std::string place);
  // The number of an eventfd, added to when a piece comes free because a view of it went, which no
  // event tells; -1: none.
  void tell(int file);
  ArenaStats stats();
  // One line for each piece that is not free.
  std::vector<std::string> holders();
  // Gives the memory back; an error while any of it is on loan or was leaked. Views keep their
  // bytes.
  void close();

  const std::string& name() const { return options_.name; }
  std::size_t bytes() const { return options_.bytes; }
  bool pinned() const { return options_.pinned; }
  int file() const;  // the memfd of a shared arena, or -1
  std::size_t mapped_bytes() const;

 private:
  friend class Lease;
  friend class Place;
  friend class View;
  using Lock = std::unique_lock<std::mutex>;
  using Events = std::vector<std::shared_ptr<Event>>;

  explicit Arena(const ArenaOptions& options);
  void check_process() const;
  void check_open_and_leaks();
  void collect(Lock& lock, Events& spent);
  std::unique_ptr<Lease> try_take(Lock& lock, Events& spent, Place& place);
  void leave(Place& place);
  [[noreturn]] void time_out(const Place& place) const;
  std::size_t lendable() const;
  std::string describe(const Loan& loan) const;
  std::vector<std::string> describe_all() const;
  std::unique_ptr<Lease> lend(std::size_t offset, std::size_t size, const Place& place);
  void give_back(const std::shared_ptr<Loan>& loan, std::shared_ptr<Event> after);
  void drop(const std::shared_ptr<Loan>& loan);
  void view_gone(const std::shared_ptr<Loan>& loan);

  const ArenaOptions options_;
  const int owner_;  // process
  std::shared_ptr<Region> region_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  FreePieces free_;
  std::list<Place*> queue_;
  int told_ = -1;
  std::map<std::uint64_t, std::shared_ptr<Loan>> loans_;
  std::vector<std::string> leaks_;
  std::size_t held_ = 0, high_water_ = 0;
  std::uint64_t count_ = 0, waits_ = 0;
  double waited_s_ = 0;
};

}  // namespace vidgen
