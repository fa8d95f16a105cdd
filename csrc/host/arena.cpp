#include "vidgen/arena.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "host/region.h"

namespace vidgen {
namespace {

using Clock = std::chrono::steady_clock;

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

double seconds_since(Clock::time_point then) {
  return std::chrono::duration<double>(Clock::now() - then).count();
}

bool all_done(const std::vector<std::shared_ptr<Event>>& events) {
  return std::all_of(events.begin(), events.end(), [](const auto& event) { return event->done(); });
}

}  // namespace

std::shared_ptr<Arena> Arena::make(const ArenaOptions& options) {
  return std::shared_ptr<Arena>(new Arena(options));
}

Arena::Arena(const ArenaOptions& options)
    : options_([&] {
        ArenaOptions rounded = options;
        rounded.bytes = round_up(options.bytes, kGrain);
        return rounded;
      }()),
      owner_(getpid()) {
  if (options_.bytes == 0) throw std::invalid_argument(options_.name + ": an arena of no bytes");
  region_ =
      std::make_shared<Region>(options_.bytes, options_.shared, options_.numa_node, options_.name);
  if (options_.pinned) region_->register_for_device(options_.device);
  free_.release(0, options_.bytes);
}

Arena::~Arena() = default;

void Arena::check_process() const {
  if (getpid() != owner_) {
    throw LeaseError(options_.name + " belongs to process " + std::to_string(owner_) +
                     "; a forked child cannot use its leases");
  }
}

void Arena::check_open_and_leaks() {
  if (region_ == nullptr) throw LeaseError(options_.name + " is closed");
  if (leaks_.empty()) return;
  std::string message = options_.name + ": dropped without being returned: ";
  for (std::size_t i = 0; i < leaks_.size(); ++i) message += (i ? "; " : "") + leaks_[i];
  leaks_.clear();
  throw LeaseError(message);
}

std::unique_ptr<Place> Arena::queue(std::size_t bytes, std::size_t align, std::string what,
                                    std::string place) {
  check_process();
  if (bytes == 0 || round_up(bytes, kGrain) > options_.bytes) {
    throw std::invalid_argument(options_.name + ": a lease of " + std::to_string(bytes) +
                                " bytes out of " + std::to_string(options_.bytes));
  }
  if (align < kGrain || align > 4096 || (align & (align - 1)) != 0) {
    throw std::invalid_argument(options_.name + ": an alignment of " + std::to_string(align) +
                                ", expected 256, 512, 1024, 2048 or 4096");
  }
  std::unique_ptr<Place> joined(
      new Place(shared_from_this(), bytes, align, std::move(what), std::move(place)));
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(joined.get());
  return joined;
}

std::unique_ptr<Lease> Arena::take(std::size_t bytes, std::size_t align, double timeout_s,
                                   std::string what, std::string place,
                                   const std::function<void()>& interrupted) {
  const auto joined = queue(bytes, align, std::move(what), std::move(place));
  double pause_s = 20e-6;
  Events spent;  // outlives the lock: an event may run foreign code when it goes
  for (bool first = true;; first = false) {
    {
      Lock lock(mutex_);
      auto lease = try_take(lock, spent, *joined);
      if (lease != nullptr) {
        waits_ += !first;
        if (!first) waited_s_ += seconds_since(joined->joined_);
        return lease;
      }
      const double left = timeout_s < 0 ? 1e9 : timeout_s - seconds_since(joined->joined_);
      if (left <= 0) time_out(*joined);
      // Events give no notice: while some are awaited, look again soon.
      const bool awaited = std::any_of(loans_.begin(), loans_.end(), [](const auto& entry) {
        return entry.second->returned && !entry.second->events.empty();
      });
      const double pause = std::min(left, awaited ? pause_s : 0.05);
      pause_s = std::min(2 * pause_s, 1e-3);
      changed_.wait_for(lock, std::chrono::duration<double>(pause));
    }
    spent.clear();
    if (interrupted) interrupted();
  }
}

std::unique_ptr<Lease> Arena::try_take(Lock& lock, Events& spent, Place& place) {
  check_open_and_leaks();
  collect(lock, spent);
  check_open_and_leaks();
  const std::size_t size = round_up(place.bytes_, kGrain);
  std::size_t offset = 0;
  if (queue_.front() != &place || !free_.find(size, place.align_, offset)) return nullptr;
  leave(place);
  return lend(offset, size, place);
}

void Arena::leave(Place& place) {
  queue_.remove(&place);
  place.waits_ = false;
  changed_.notify_all();  // the next one may be served
}

void Arena::time_out(const Place& place) const {
  std::string message = options_.name + ": no " + std::to_string(place.bytes_) +
                        " bytes free in one piece of " + std::to_string(options_.bytes) +
                        " (largest free " + std::to_string(free_.largest()) + "); held by: ";
  const auto all = describe_all();
  for (std::size_t i = 0; i < all.size(); ++i) message += (i ? "; " : "") + all[i];
  if (all.empty()) message += "nobody";
  if (queue_.front() != &place) {
    message += "; first in the queue for room: " + std::to_string(queue_.front()->bytes_) +
               " bytes asked for at " + queue_.front()->place_;
  }
  throw ArenaTimeout(message);
}

Place::Place(std::shared_ptr<Arena> arena, std::size_t bytes, std::size_t align, std::string what,
             std::string place)
    : arena_(std::move(arena)),
      bytes_(bytes),
      align_(align),
      what_(std::move(what)),
      place_(std::move(place)),
      joined_(Clock::now()) {}

Place::~Place() {
  if (getpid() != arena_->owner_) return;
  std::lock_guard<std::mutex> lock(arena_->mutex_);
  if (waits_) arena_->leave(*this);
}

std::unique_ptr<Lease> Place::try_take() {
  arena_->check_process();
  Arena::Events spent;
  Arena::Lock lock(arena_->mutex_);
  if (!waits_) throw LeaseError(arena_->name() + ": this place in the queue was served already");
  return arena_->try_take(lock, spent, *this);
}

std::unique_ptr<Lease> Arena::lend(std::size_t offset, std::size_t size, const Place& place) {
  free_.cut(offset, size);
  auto loan = std::make_shared<Loan>();
  loan->number = ++count_;
  loan->offset = offset;
  loan->size = size;
  loan->what = place.what_;
  loan->place = place.place_;
  loan->taken = Clock::now();
  loans_[loan->number] = loan;
  held_ += size;
  high_water_ = std::max(high_water_, held_);
  return std::make_unique<Lease>(shared_from_this(), std::move(loan), place.bytes_);
}

// Frees what was waiting for events that have come. The lock is open while they are asked, since
// an event may be anything, even Python.
void Arena::collect(Lock& lock, Events& spent) {
  std::vector<std::pair<std::shared_ptr<Loan>, std::size_t>> returned;  // and their last event + 1
  const std::size_t first = spent.size();
  for (const auto& [number, loan] : loans_) {
    if (!loan->returned) continue;
    spent.insert(spent.end(), loan->events.begin(), loan->events.end());
    returned.emplace_back(loan, spent.size());
  }
  if (returned.empty()) return;
  lock.unlock();
  std::vector<bool> done;
  for (std::size_t i = first, r = 0; r < returned.size(); ++r) {
    bool all = true;
    // Every one is asked: asking moves a simulated copy engine on.
    for (; i < returned[r].second; ++i) all = spent[i]->done() && all;
    done.push_back(all);
  }
  lock.lock();
  bool freed = false;
  for (std::size_t r = 0; r < returned.size(); ++r) {
    const auto& loan = returned[r].first;
    if (!done[r]) continue;
    loan->events.clear();  // `spent` has them still
    if (loan->views > 0 || loans_.erase(loan->number) == 0) continue;
    held_ -= loan->size;
    free_.release(loan->offset, loan->size);
    freed = true;
  }
  if (freed) changed_.notify_all();
}

ArenaStats Arena::stats() {
  check_process();
  Events spent;
  Lock lock(mutex_);
  collect(lock, spent);
  ArenaStats stats;
  stats.bytes = options_.bytes;
  stats.held = held_;
  stats.high_water = high_water_;
  stats.leases = count_;
  stats.waits = waits_;
  stats.waited_s = waited_s_;
  stats.largest_free = free_.largest();
  stats.lendable = lendable();
  stats.registrations = options_.pinned;
  stats.huge_pages = region_ != nullptr && region_->huge_pages();
  return stats;
}

std::size_t Arena::lendable() const {
  FreePieces free = free_;
  for (const auto& [number, loan] : loans_) {
    if (!loan->returned || loan->views == 0) free.release(loan->offset, loan->size);
  }
  return free.largest();
}

void Arena::tell(int file) {
  std::lock_guard<std::mutex> lock(mutex_);
  told_ = file;
}

std::vector<std::string> Arena::holders() {
  check_process();
  Events spent;
  Lock lock(mutex_);
  collect(lock, spent);
  return describe_all();
}

void Arena::close() {
  check_process();
  Events spent;
  Lock lock(mutex_);
  if (region_ == nullptr) return;
  collect(lock, spent);
  std::string out;
  for (const auto& [number, loan] : loans_) {
    if (loan->returned && loan->events.empty()) continue;  // views keep their bytes themselves
    out += (out.empty() ? "" : "; ") + describe(*loan);
  }
  if (!out.empty()) throw LeaseError(options_.name + " closed while on loan: " + out);
  check_open_and_leaks();
  region_.reset();
}

int Arena::file() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return region_ == nullptr ? -1 : region_->file();
}

std::size_t Arena::mapped_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return region_ == nullptr ? 0 : region_->mapped_bytes();
}

std::string Arena::describe(const Loan& loan) const {
  char age[32];
  std::snprintf(age, sizeof age, "%.1f s", seconds_since(loan.taken));
  std::string state;
  if (loan.returned) {
    state = loan.views > 0 ? ", returned, but a view of it is kept" : ", returned, awaits a copy";
  }
  return std::to_string(loan.size) + " bytes" + (loan.what.empty() ? "" : " (" + loan.what + ")") +
         " taken at " + loan.place + ", " + age + " ago" + state;
}

std::vector<std::string> Arena::describe_all() const {
  std::vector<std::string> all;
  for (const auto& [number, loan] : loans_) all.push_back(describe(*loan));
  return all;
}

// Leases and views ---------------------------------------------------------------------------

void Arena::give_back(const std::shared_ptr<Loan>& loan, std::shared_ptr<Event> after) {
  check_process();
  Events spent;
  Events noted;
  Lock lock(mutex_);
  for (;;) {
    if (loan->returned) throw LeaseError(options_.name + ": returned twice: " + describe(*loan));
    if (after != nullptr) break;
    noted = loan->events;
    lock.unlock();
    const bool done = all_done(noted);
    lock.lock();
    if (!done) {
      throw LeaseError(options_.name + ": returned early, a copy still uses it: " +
                       describe(*loan) + "; pass the copy's ticket as `after`");
    }
    if (noted.size() == loan->events.size()) break;  // none was noted meanwhile
  }
  if (loan->returned) throw LeaseError(options_.name + ": returned twice: " + describe(*loan));
  if (after != nullptr) loan->events.push_back(std::move(after));
  loan->returned = true;
  collect(lock, spent);
  changed_.notify_all();
}

void Arena::drop(const std::shared_ptr<Loan>& loan) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (loan->returned) return;
  leaks_.push_back(describe(*loan));
  loan->returned = true;
}

void Arena::view_gone(const std::shared_ptr<Loan>& loan) {
  std::lock_guard<std::mutex> lock(mutex_);
  // Whoever waits for room, or asks next, collects it: its events are not asked in here.
  if (--loan->views > 0 || !loan->returned) return;
  changed_.notify_all();
  // Full, it says so already.
  if (told_ >= 0) (void)!eventfd_write(told_, 1);
}

Lease::Lease(std::shared_ptr<Arena> arena, std::shared_ptr<Loan> loan, std::size_t bytes)
    : arena_(std::move(arena)), loan_(std::move(loan)), bytes_(bytes) {}

Lease::~Lease() {
  if (getpid() == arena_->owner_) arena_->drop(loan_);
}

unsigned char* Lease::data() const {
  arena_->check_process();
  std::lock_guard<std::mutex> lock(arena_->mutex_);
  if (loan_->returned) {
    throw LeaseError(arena_->name() + ": used after its return: " + arena_->describe(*loan_));
  }
  return arena_->region_->data() + loan_->offset;
}

std::shared_ptr<View> Lease::view() {
  data();
  std::shared_ptr<Region> region;
  {
    std::lock_guard<std::mutex> lock(arena_->mutex_);
    region = arena_->region_;
  }
  return std::make_shared<View>(arena_, std::move(region), loan_, bytes_);
}

void Lease::used_by(std::shared_ptr<Event> event) {
  data();
  std::lock_guard<std::mutex> lock(arena_->mutex_);
  loan_->events.push_back(std::move(event));
}

void Lease::give_back(std::shared_ptr<Event> after) { arena_->give_back(loan_, std::move(after)); }

void Lease::drop_pages() {
  unsigned char* from = data();
  if (!arena_->pinned()) arena_->region_->drop_pages(from, bytes_);
}

View::View(std::shared_ptr<Arena> arena, std::shared_ptr<Region> region, std::shared_ptr<Loan> loan,
           std::size_t bytes)
    : arena_(std::move(arena)), region_(std::move(region)), loan_(std::move(loan)), bytes_(bytes) {
  std::lock_guard<std::mutex> lock(arena_->mutex_);
  ++loan_->views;
}

View::~View() {
  if (getpid() == arena_->owner_) arena_->view_gone(loan_);
}

unsigned char* View::data() const { return region_->data() + loan_->offset; }

}  // namespace vidgen
