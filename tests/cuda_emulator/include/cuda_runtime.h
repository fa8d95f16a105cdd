// The words of CUDA the kernels use, in plain C++ over the emulator.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

inline const vidgen::emulator::Index& threadIdx = vidgen::emulator::thread_index;
inline const vidgen::emulator::Index& blockIdx = vidgen::emulator::block_index;
inline const vidgen::emulator::Index& blockDim = vidgen::emulator::block_size;
inline const vidgen::emulator::Index& gridDim = vidgen::emulator::grid_size;

// ---- on the host ----

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace vidgen::emulator {

// Shared memory a kernel was allowed beyond the 48 KiB every kernel has.
template <class... Parameters>
std::size_t& allowed_shared(void (*kernel)(Parameters...)) {
  return allowed_shared_of(reinterpret_cast<const void*>(kernel));
}

}  // namespace vidgen::emulator

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (static_cast<std::size_t>(bytes) > vidgen::emulator::settings().most_shared) {
    return cudaErrorInvalidValue;
  }
  vidgen::emulator::allowed_shared(kernel) = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

// Runs to its end before it returns, where a GPU would only take note of it.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->dynamicSmemBytes > vidgen::emulator::allowed_shared(kernel)) {
    return cudaErrorInvalidValue;
  }
  const auto index = [](dim3 size) { return vidgen::emulator::Index{size.x, size.y, size.z}; };
  vidgen::emulator::run("kernel", index(config->gridDim), index(config->blockDim),
                        config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

// ---- in a kernel ----

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline void __syncthreads() { vidgen::emulator::block_barrier(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  vidgen::emulator::warp_collective("__syncwarp", mask, &nothing,
                                    [](void* const(&)[vidgen::emulator::kLanes]) {});
}

inline float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  struct Exchange {
    float given, received;
    int lanes;
  } mine{value, 0.0f, lanes};
  vidgen::emulator::warp_collective(
      "__shfl_xor_sync", mask, &mine, [](void* const(&operands)[vidgen::emulator::kLanes]) {
        for (int lane = 0; lane < vidgen::emulator::kLanes; ++lane) {
          if (operands[lane] == nullptr) continue;
          auto* to = static_cast<Exchange*>(operands[lane]);
          const auto* from = static_cast<const Exchange*>(operands[lane ^ to->lanes]);
          if (from == nullptr) vidgen::emulator::fail("__shfl_xor_sync reads from an absent lane");
          to->received = from->given;
        }
      });
  return mine.received;
}
