// Lanes of a CUDA device, which a library without one stands in for.
#include <vector>

#include "check.h"
#include "host/cuda_driver.h"
#include "vidgen/arena.h"
#include "vidgen/lane.h"

namespace vidgen::test {
namespace {

using Bytes = std::vector<unsigned char>;

std::shared_ptr<Arena> pinned_arena(std::size_t bytes) {
  return Arena::make({bytes, "arena", true, false, 0, -1});
}

}  // namespace

void test_cuda_lane() {
  expect_throws<std::runtime_error>([] { make_cuda_lane(1); }, "fake failure (101)");
  const CudaDriver& driver = cuda_driver();
  const CudaDriver missing("no-such-library.so");
  expect(missing.problem().find("no CUDA driver") == 0, "a missing driver is named");
  const auto before = driver.registrations();
  constexpr std::size_t kBytes = 1000;
  const CudaStream compute = driver.make_stream(0);
  {
    const auto arena = pinned_arena(16 * 1024);
    for (int round = 0; round < 200; ++round) {
      const auto out = make_cuda_lane(0), back = make_cuda_lane(0);
      const auto value = static_cast<unsigned char>(round);
      const Bytes fresh(kBytes, value);
      Bytes device(kBytes), again(kBytes), result(kBytes);
      // Computed on a stream, sent out, brought back, and used by the stream.
      driver.copy(0, device.data(), fresh.data(), kBytes, compute);
      auto lease = arena->take(kBytes, 256, 10, "round trip", "here");
      auto kept = std::make_shared<int>(1);
      const std::weak_ptr<int> watched = kept;
      const auto left = out->copy(lease->data(), device.data(), kBytes, Producer::stream(compute),
                                  lease.get(), std::move(kept));
      left->wait_on_stream(compute);
      const Bytes spoiled(kBytes, 255);
      driver.copy(0, device.data(), spoiled.data(), kBytes, compute);  // its memory is used again
      const auto came =
          back->copy(again.data(), lease->data(), kBytes, Producer::ticket(left), lease.get(), {});
      lease->give_back(came);
      came->wait_on_stream(compute);
      driver.copy(0, result.data(), again.data(), kBytes, compute);
      const auto end =
          out->copy(result.data(), result.data(), 0, Producer::stream(compute), nullptr, {});
      end->wait();
      expect(result == fresh, "the bytes went out and back, round " + std::to_string(round));
      expect(left->done() && watched.expired(), "what a complete copy kept is let go");
    }
    expect(arena->stats().held == 0, "every lease is back");
    arena->close();
  }
  expect(driver.registrations() == before + 1, "one registration");
  const auto arena = pinned_arena(4096);
  expect(arena->stats().registrations == 1 && driver.registrations() == before + 2,
         "it was undone with its arena, or the address could not be registered again");
  expect(numa_node_of_device(0) == -1, "an unknown device hangs on no node");
}

}  // namespace vidgen::test
