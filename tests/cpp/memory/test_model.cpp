// Every interleaving of a few users of one arena and of the copies completing, against a model of
// what must hold. Each path runs from the start on the real arena, leases, lanes and engine.
#include <functional>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "vidgen/arena.h"
#include "vidgen/lane.h"

namespace vidgen::test {
namespace {

constexpr std::size_t kGrain = Arena::kGrain;

// Takes a piece, fills it, copies it away, and returns it in one of several ways.
enum class Manner {
  after_ticket,  // returned with the ticket while the copy may be under way
  when_noted,    // returned without one: an error until the copy is complete
  view_kept,     // returned with the ticket, a view goes later
  leaked,        // dropped
};

struct User {
  Manner manner;
  std::size_t grains;
  unsigned char value;
  int step = 0;
  std::unique_ptr<Lease> lease{};
  std::unique_ptr<Lane> lane{};
  std::shared_ptr<Ticket> ticket{};
  std::shared_ptr<View> view{};
  std::vector<unsigned char> destination{};
  std::size_t offset = 0;
  bool returned = false;
  bool refused = false;  // to return was an error, and nothing has moved since

  bool holds() const {
    const bool copied = ticket == nullptr || destination.back() == value;
    return step > 0 && !(returned && copied && view == nullptr);
  }
};

class World {
 public:
  explicit World(const std::vector<std::pair<Manner, std::size_t>>& plan, std::size_t grains) {
    arena_ = Arena::make({grains * kGrain, "arena", false, false, 0, -1});
    engine_ = SimulatedEngine::make(0, 0, 0);
    engine_->only_by_hand();
    for (const auto& [manner, size] : plan) {
      User user{manner, size, static_cast<unsigned char>(users_.size() + 1)};
      user.lane = make_simulated_lane(engine_);
      users_.push_back(std::move(user));
    }
  }

  // Actions: user u's next step is u, the engine moving queue q is users + q.
  std::vector<int> enabled() {
    std::vector<int> found;
    for (std::size_t u = 0; u < users_.size(); ++u) {
      const User& user = users_[u];
      if (user.step < 2 || (!user.returned && user.lease != nullptr) || user.view != nullptr) {
        if (user.refused) continue;
        if (user.step != 0 || room(user.grains)) found.push_back(static_cast<int>(u));
      }
    }
    for (int queue : engine_->movable()) found.push_back(static_cast<int>(users_.size()) + queue);
    return found;
  }

  void act(int action) {
    const int count = static_cast<int>(users_.size());
    if (action >= count) {
      expect(engine_->move(action - count), "a movable queue moves");
      for (User& user : users_) user.refused = false;
    } else {
      advance(users_[static_cast<std::size_t>(action)]);
    }
    check();
  }

  void finish() {
    for (const User& user : users_) {
      expect(user.destination.empty() ||
                 user.destination == std::vector<unsigned char>(user.grains * kGrain, user.value),
             "the copy has the user's bytes");
    }
    if (leaks_ > told_) {
      expect_throws<LeaseError>([&] { arena_->close(); }, "dropped without being returned");
    }
    expect(arena_->stats().held == 0, "everything has come back");
    expect(arena_->stats().largest_free == arena_->bytes(), "in one piece");
    arena_->close();
  }

 private:
  // By the model, which knows no fragments: pieces taken from the left, best fit.
  bool room(std::size_t grains) {
    (void)arena_->stats();  // collects
    std::vector<bool> taken(arena_->bytes() / kGrain, false);
    for (const User& user : users_) {
      if (!user.holds()) continue;
      for (std::size_t g = 0; g < user.grains; ++g) taken[user.offset / kGrain + g] = true;
    }
    std::size_t run = 0, longest = 0;
    for (bool used : taken) longest = std::max(longest, run = used ? 0 : run + 1);
    return longest >= grains;
  }

  void advance(User& user) {
    const int step = user.step++;
    if (step == 0) {
      const auto take = [&] {
        user.lease = arena_->take(user.grains * kGrain, kGrain, 0, "user", "here");
      };
      if (leaks_ > told_) {
        expect_throws<LeaseError>(take, "dropped without being returned");
        told_ = leaks_;
      }
      take();
      user.offset = user.lease->offset();
      for (const User& other : users_) {
        if (&other == &user || !other.holds()) continue;
        const bool apart = user.offset + user.grains * kGrain <= other.offset ||
                           other.offset + other.grains * kGrain <= user.offset;
        expect(apart, "no two leases overlap");
      }
      std::fill_n(user.lease->data(), user.lease->bytes(), user.value);
      if (user.manner == Manner::view_kept) user.view = user.lease->view();
    } else if (step == 1) {
      user.destination.assign(user.lease->bytes(), 0);
      user.ticket = user.lane->copy(user.destination.data(), user.lease->data(),
                                    user.lease->bytes(), Producer::host(), user.lease.get(), {});
    } else if (user.manner == Manner::leaked) {
      user.lease.reset();
      user.returned = true;
      ++leaks_;
    } else if (!user.returned) {
      const bool done = user.ticket->done();
      if (user.manner == Manner::when_noted && !done) {
        expect_throws<LeaseError>([&] { user.lease->give_back(); }, "returned early");
        user.refused = true;
        return;
      }
      user.lease->give_back(user.manner == Manner::when_noted ? nullptr : user.ticket);
      user.returned = true;
      expect_throws<LeaseError>([&] { user.lease->give_back(user.ticket); }, "returned twice");
      expect_throws<LeaseError>([&] { user.lease->data(); }, "used after its return");
      expect_throws<LeaseError>([&] { user.lease->used_by(user.ticket); }, "after its return");
    } else {
      expect(user.view->data()[0] == user.value, "a kept view sees the same bytes");
      user.view.reset();
    }
  }

  void check() {
    std::size_t held = 0;
    for (const User& user : users_) {
      if (!user.holds()) continue;
      held += user.grains * kGrain;
      // Nobody else has written there.
      if (user.lease != nullptr && !user.returned) {
        expect(user.lease->data()[user.lease->bytes() - 1] == user.value, "its bytes are its own");
      }
    }
    expect(arena_->stats().held == held,
           "what is held is what the model says: " + std::to_string(arena_->stats().held) +
               " and " + std::to_string(held));
  }

  std::shared_ptr<Arena> arena_;
  std::shared_ptr<SimulatedEngine> engine_;
  std::vector<User> users_;
  int leaks_ = 0, told_ = 0;
};

// Depth first, each path from the start.
int explore(const std::vector<std::pair<Manner, std::size_t>>& plan, std::size_t grains) {
  int complete = 0;
  std::vector<int> path;
  std::function<void()> descend = [&] {
    World world(plan, grains);
    for (int action : path) world.act(action);
    const auto next = world.enabled();
    if (next.empty()) {
      world.finish();
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

void test_model() {
  using M = Manner;
  int paths = 0;
  for (M first : {M::after_ticket, M::view_kept, M::when_noted, M::leaked}) {
    for (M second : {M::after_ticket, M::view_kept, M::leaked}) {
      paths += explore({{first, 2}, {second, 3}}, 4);  // one at a time fits
      paths += explore({{first, 2}, {second, 2}}, 4);  // both do
    }
  }
  paths += explore({{M::after_ticket, 1}, {M::after_ticket, 2}, {M::after_ticket, 1}}, 3);
  std::printf("model: %d complete interleavings\n", paths);
  expect(paths > 1000, "the model explored " + std::to_string(paths) + " paths");
}

}  // namespace vidgen::test
