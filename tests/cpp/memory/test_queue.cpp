// Every interleaving of a few users who queue for room, are served, give it back or give up:
// whoever came first is served first, and nobody is passed over.
#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "vidgen/arena.h"

namespace vidgen::test {
namespace {

constexpr std::size_t kGrain = Arena::kGrain;

struct User {
  std::size_t grains;
  bool gives_up;  // may leave the queue unserved
  std::unique_ptr<Place> place{};
  std::unique_ptr<Lease> lease{};
  bool finished = false;
};

enum Deed { kGoOn, kGiveUp };

class World {
 public:
  World(std::vector<User>&& users, std::size_t grains)
      : arena_(Arena::make({grains * kGrain, "arena", false, false, 0, -1})),
        users_(std::move(users)) {}

  // User u going on is 2u, giving up 2u + 1.
  std::vector<int> enabled() const {
    std::vector<int> found;
    for (int u = 0; u < static_cast<int>(users_.size()); ++u) {
      const User& user = users_[static_cast<std::size_t>(u)];
      if (user.finished) continue;
      if (user.place == nullptr || user.lease != nullptr || servable(u)) found.push_back(2 * u);
      if (user.place != nullptr && user.lease == nullptr && user.gives_up) {
        found.push_back(2 * u + 1);
      }
    }
    return found;
  }

  void act(int action) {
    const int number = action / 2;
    User& user = users_[static_cast<std::size_t>(number)];
    if (action % 2 == kGiveUp) {
      waiting_.erase(std::find(waiting_.begin(), waiting_.end(), number));
      user.place.reset();
      user.finished = true;
    } else if (user.place == nullptr) {
      user.place = arena_->queue(user.grains * kGrain, kGrain, "user", "here");
      waiting_.push_back(number);
    } else if (user.lease == nullptr) {
      user.lease = user.place->try_take();
      expect(user.lease != nullptr, "the first is served where there is room");
      waiting_.pop_front();
      expect_throws<LeaseError>([&] { (void)user.place->try_take(); }, "served already");
    } else {
      user.lease->give_back();
      user.finished = true;
    }
    check();
  }

  bool complete() const {
    return std::all_of(users_.begin(), users_.end(), [](const User& u) { return u.finished; });
  }

 private:
  bool servable(int number) const {
    return waiting_.front() == number && room(users_[static_cast<std::size_t>(number)].grains);
  }

  bool room(std::size_t grains) const {
    std::vector<bool> taken(arena_->bytes() / kGrain, false);
    for (const User& user : users_) {
      if (user.lease == nullptr || user.finished) continue;
      const std::size_t first = user.lease->offset() / kGrain;
      std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(first), user.grains, true);
    }
    std::size_t run = 0, longest = 0;
    for (bool used : taken) longest = std::max(longest, run = used ? 0 : run + 1);
    return longest >= grains;
  }

  void check() {
    for (int number : waiting_) {
      if (servable(number)) continue;
      expect(users_[static_cast<std::size_t>(number)].place->try_take() == nullptr,
             "nobody overtakes, whatever room there is");
    }
    if (waiting_.empty()) return;
    expect_throws<ArenaTimeout>([&] { (void)arena_->take(1, kGrain, 0, "late", "there"); },
                                "first in the queue for room");
  }

  std::shared_ptr<Arena> arena_;
  std::vector<User> users_;
  std::deque<int> waiting_;  // as the model has it
};

int explore(const std::vector<std::pair<std::size_t, bool>>& plan, std::size_t grains) {
  int complete = 0;
  std::vector<int> path;
  const std::function<void()> descend = [&] {
    std::vector<User> users;
    for (const auto& [size, gives_up] : plan) users.push_back({size, gives_up});
    World world(std::move(users), grains);
    for (int action : path) world.act(action);
    const auto next = world.enabled();
    if (next.empty()) {
      expect(world.complete(), "nobody waits for ever");
      ++complete;
    }
    if (failures > 0) return;
    for (int action : next) {
      path.push_back(action);
      descend();
      path.pop_back();
    }
  };
  descend();
  return complete;
}

}  // namespace

void test_queue() {
  int paths = explore({{3, false}, {1, false}, {1, false}}, 3);  // one large among small ones
  paths += explore({{2, true}, {3, true}, {1, false}}, 4);
  paths += explore({{2, false}, {1, true}, {2, false}}, 4);
  std::printf("queue: %d complete interleavings\n", paths);
  expect(paths > 500, "the model explored " + std::to_string(paths) + " paths");
}

}  // namespace vidgen::test
