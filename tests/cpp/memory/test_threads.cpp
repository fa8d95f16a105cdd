// Many threads on one arena, and processes that fork.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "vidgen/arena.h"
#include "vidgen/lane.h"

namespace vidgen::test {

void test_threads() {
  const auto arena = Arena::make({40 * Arena::kGrain, "arena", false, false, 0, -1});
  const auto engine = SimulatedEngine::make(1, 1e-5, 0);
  std::atomic<int> wrong{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    const auto lane = make_simulated_lane(engine);
    std::vector<unsigned char> device(16 * Arena::kGrain);
    for (int round = 0; round < 150; ++round) {
      const std::size_t bytes = 1 + random() % device.size();
      auto lease = arena->take(bytes, 256, 60, "round", "thread " + std::to_string(seed));
      const auto value = static_cast<unsigned char>(random());
      std::fill_n(lease->data(), bytes, value);
      const auto ticket =
          lane->copy(device.data(), lease->data(), bytes, Producer::host(), lease.get(), {});
      auto view = random() % 4 == 0 ? lease->view() : nullptr;
      lease->give_back(ticket);
      if (view != nullptr && view->data()[bytes - 1] != value) ++wrong;
      view.reset();
      ticket->wait();
      for (std::size_t i = 0; i < bytes; ++i) wrong += device[i] != value;
      if (round % 16 == 0) (void)arena->holders();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 6; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  expect(wrong == 0, "every thread saw its own bytes");
  const ArenaStats stats = arena->stats();
  expect(stats.held == 0 && stats.largest_free == arena->bytes(), "all of it is free again");
  expect(stats.leases == 900, "every lease was counted");
  arena->close();
}

namespace {

template <class Function>
int status_of_child(Function function) {
  const pid_t child = fork();
  if (child == 0) _exit(function());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

bool refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const LeaseError& error) {
    return std::string(error.what()).find("forked child") != std::string::npos;
  }
  return false;
}

}  // namespace

void test_processes() {
  for (bool shared : {false, true}) {
    const auto arena = Arena::make({1 << 16, "arena", false, shared, 0, -1});
    const auto engine = SimulatedEngine::make(1, 0, 0);
    const auto lane = make_simulated_lane(engine);
    auto lease = std::shared_ptr<Lease>(arena->take(4096, 256, 0, "", "here"));
    lease->data()[5] = 42;
    unsigned char target = 0;
    unsigned char* address = lease->data();
    const int status = status_of_child([&] {
      int bad = 0;
      bad += !refused([&] { arena->take(256, 256, 0, "", ""); });
      bad += !refused([&] { lease->data(); });
      bad += !refused([&] { lease->give_back(); });
      bad += !refused([&] { (void)arena->stats(); });
      bad += !refused([&] { arena->close(); });
      bad += !refused([&] { lane->copy(&target, address, 1, Producer::host(), nullptr, {}); });
      // Private memory is not even there, so the pages of a copy under way stay the parent's;
      // shared memory is.
      unsigned char resident = 0;
      const bool mapped =
          mincore(reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(address) / 4096 * 4096),
                  4096, &resident) == 0;
      bad += mapped != shared;
      lease.reset();  // neither a leak nor a return
      return bad;
    });
    expect(status == 0, std::to_string(status) + " things a forked child could do");
    expect(lease->data()[5] == 42, "the parent's bytes are as they were");
    lease->give_back();
    arena->close();
  }
}

}  // namespace vidgen::test
