// Runs the GPU kernels on the CPU: every thread of a block is a fiber, and they take turns.
//
// Fibers change only where a kernel waits: at a barrier of the block or of a warp. Which of them
// goes on is drawn from a seed, so a missing barrier shows as a result that depends on the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace vidgen::emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

constexpr int kLanes = 32;

// ---- from the host ----

struct Settings {
  uint64_t seed = 0;
  std::size_t most_shared = 166912;  // bytes of shared memory a block may ask for: sm_80's
};
Settings& settings();

// What the last launches did; the caller sets it back to zero.
struct Counts {
  int64_t launches = 0, barriers = 0, matrix_products = 0, copies = 0;
  int64_t bank_conflicts = 0;  // rows of ldmatrix that had to wait for a bank
};
Counts& counts();

// Bytes of shared memory this kernel may be launched with; 48 KiB until somebody changes it.
std::size_t& allowed_shared_of(const void* kernel);

// Runs every block, in an order drawn from the seed. Throws std::runtime_error, naming kernel,
// block and thread, when a thread touches memory outside every buffer or a misaligned address,
// computes what C++ leaves undefined, or waits for a thread that never comes.
void run(const char* kernel, Index grid, Index block, std::size_t shared_bytes,
         const std::function<void()>& body);

// Memory between two pages nobody may touch; the end of the bytes, rounded up to 16, touches the
// second or their beginning the first.
void* allocate(std::size_t bytes, bool against_the_end);
void release(void* memory);

// ---- from the kernel ----

// Of the thread that runs.
extern Index thread_index, block_index, block_size, grid_size;

// The block's shared memory, filled with NaN when the block starts.
unsigned char* shared_memory();
std::size_t shared_bytes();

void block_barrier();

// What the lanes of a warp do together: when all lanes of `mask` have handed in their operand, the
// last one runs `act` over them (null for absent lanes). All must name the same `what`.
void warp_collective(const char* what, unsigned mask, void* operand,
                     void (*act)(void* const (&operands)[kLanes]));

// An asynchronous copy into shared memory, `bytes` of which `valid` come from `source` and the rest
// are zeros. It happens at once or only when it is waited for: the seed decides.
void copy_async(uint32_t to, const void* source, int bytes, int valid);
void commit_copies();
void wait_for_copies(int groups_left);

// Stops the launch with this message.
[[noreturn]] void fail(const std::string& what);

}  // namespace vidgen::emulator
