// The second stage of every sum over tokens.
#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

__global__ void __launch_bounds__(128)
    add_chunks_kernel(const float* partials, int64_t chunks, int64_t width, SumResults results) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t sum = blockIdx.y;
  const int64_t b = blockIdx.z;
  if (i >= width) return;
  const int64_t step = gridDim.y * width;
  const float* partial = partials + b * chunks * step + sum * width + i;
  double total = 0.0;
#pragma unroll 8
  for (int64_t c = 0; c < chunks; ++c) total += static_cast<double>(partial[c * step]);
  results.of[sum][b * width + i] = static_cast<float>(total);
}

}  // namespace

void add_chunks(const float* partials, int64_t samples, int64_t chunks, int sums, int64_t width,
                const SumResults& results, const Launch& launch) {
  if (samples == 0) return;
  const dim3 grid(blocks((width + 127) / 128), static_cast<unsigned>(sums), blocks(samples));
  start("add_chunks", add_chunks_kernel, grid, 128, 0, launch, partials, chunks, width, results);
}

}  // namespace vidgen::cuda
