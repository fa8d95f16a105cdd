// Launches a kernel; throws if the launch fails.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "vidgen/ops.h"

namespace vidgen::cuda {

inline unsigned blocks(int64_t count) { return static_cast<unsigned>(count); }

inline void expect_success(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, or the next CUDA call would report it
  throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

// `shared` is in bytes; what a kernel needs beyond the 48 KiB every kernel has is asked for.
template <class... Parameters, class... Arguments>
void start(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
           std::size_t shared, const Launch& launch, const Arguments&... arguments) {
  if (shared > 48 * 1024) {
    expect_success(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(shared)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  expect_success(name, cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace vidgen::cuda
