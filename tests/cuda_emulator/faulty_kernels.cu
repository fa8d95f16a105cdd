// Kernels with one fault each, to see that the emulator notices it.
#include <exception>
#include <string>

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace vidgen::cuda {
namespace {

constexpr int kThreads = 64;

// The array reversed, by way of shared memory.
__global__ void reverse(const float* in, float* out, bool with_barrier) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = in[threadIdx.x];
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void barrier_for_some(float* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 0.0f;
}

__global__ void barrier_after_leaving(float* out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 0.0f;
}

__global__ void shuffle_for_some(float* out) {
  float value = 1.0f;
  if (threadIdx.x != 5) {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  } else {
    __syncwarp();
  }
  out[threadIdx.x] = value;
}

__global__ void past_the_end(const float* in, float* out, int by) {
  out[threadIdx.x] = in[threadIdx.x + by];
}

__global__ void past_shared(float* out) {
  dynamic_shared<float>()[threadIdx.x + 1] = 0.0f;
  __syncthreads();
  out[threadIdx.x] = 0.0f;
}

__global__ void never_written(float* out) { out[threadIdx.x] = dynamic_shared<float>()[0]; }

__global__ void copy_through_shared(const float* in, float* out, bool with_wait) {
  float* shared = dynamic_shared<float>();
  if (threadIdx.x % 4 == 0) {
    copy_async(shared_address(shared + threadIdx.x), in + threadIdx.x, true);
  }
  commit_copies();
  if (with_wait) wait_for_copies<0>();
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void misaligned(const float* in, float* out) {
  struct alignas(16) Four {
    float value[4];
  };
  if (threadIdx.x == 0) {
    *reinterpret_cast<Four*>(out) = *reinterpret_cast<const Four*>(in + 1);
  }
}

// Eight rows of 128 bytes, one below the other.
__global__ void one_bank(float* out) {
  float* shared = dynamic_shared<float>();
  for (int i = 0; i < 16; ++i) shared[i * kThreads + threadIdx.x] = 0.0f;
  __syncthreads();
  uint32_t registers[4];
  load_matrices(registers, shared_address(shared) + threadIdx.x % 32 * 128);
  out[threadIdx.x] = static_cast<float>(registers[0]);
}

void start_kernel(const std::string& name, const float* in, float* out) {
  const Launch launch;
  const auto go = [&](auto kernel, std::size_t floats, auto... arguments) {
    start("faulty", kernel, 1, kThreads, floats * sizeof(float), launch, arguments...);
  };
  if (name == "reverse") go(reverse, kThreads, in, out, true);
  if (name == "reverse without a barrier") go(reverse, kThreads, in, out, false);
  if (name == "barrier for some") go(barrier_for_some, 0, out);
  if (name == "barrier after leaving") go(barrier_after_leaving, 0, out);
  if (name == "shuffle for some") go(shuffle_for_some, 0, out);
  if (name == "past the end") go(past_the_end, 0, in, out, 1);
  if (name == "before the beginning") go(past_the_end, 0, in, out, -1);
  if (name == "past shared memory") go(past_shared, kThreads, out);
  if (name == "never written") go(never_written, kThreads, out);
  if (name == "copy") go(copy_through_shared, kThreads, in, out, true);
  if (name == "copy without a wait") go(copy_through_shared, kThreads, in, out, false);
  if (name == "misaligned") go(misaligned, 0, in, out);
  if (name == "one bank") go(one_bank, 16 * kThreads, out);
  if (name == "much shared memory") go(never_written, 50'000, out);
  if (name == "many threads") start("faulty", never_written, 1, 2048, 4, launch, out);
}

}  // namespace
}  // namespace vidgen::cuda

// What is thrown, or nothing; by ctypes.
extern "C" __attribute__((visibility("default"))) const char* vidgen_start_faulty(const char* name,
                                                                                  const float* in,
                                                                                  float* out) {
  static std::string message;
  message.clear();
  try {
    vidgen::cuda::start_kernel(name, in, out);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
