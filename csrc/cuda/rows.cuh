// Shared by the GPU kernels: packs of elements, rows, sums over a block, sums over tokens.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "vidgen/ops.h"

namespace vidgen::cuda {

// ---- storage ----

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}

constexpr int alignment_of(int bytes) { return bytes < 16 ? bytes : 16; }

// N neighbours, read or written by one instruction (two where they are more than 16 bytes).
template <class T, int N>
struct alignas(alignment_of(sizeof(T) * N)) Pack {
  T element[N];
};

template <int N, class T>
__device__ __forceinline__ void load(const T* at, float (&values)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(at);
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = to_float(pack.element[n]);
}

template <int N, class T>
__device__ __forceinline__ void store(T* at, const float (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; ++n) pack.element[n] = from_float<T>(values[n]);
  *reinterpret_cast<Pack<T, N>*>(at) = pack;
}

// The rows of a (B, L, D) tensor.
template <class T>
struct Rows {
  T* data;
  int64_t of_sample, of_token;  // strides

  explicit Rows(const TensorView& view)
      : data(static_cast<T*>(view.data)), of_sample(view.stride[0]), of_token(view.stride[1]) {}
  __device__ __forceinline__ T* at(int64_t b, int64_t l) const {
    return data + b * of_sample + l * of_token;
  }
};

// The rows of a (B, D) tensor of any storage type.
struct Vectors {
  const void* data;
  DType dtype;
  int64_t of_sample;

  explicit Vectors(const TensorView& view)
      : data(view.data), dtype(view.dtype), of_sample(view.dims == 2 ? view.stride[0] : 0) {}

  template <int N>
  __device__ __forceinline__ void load(int64_t b, int64_t i, float (&values)[N]) const {
    const int64_t index = b * of_sample + i;
    if (dtype == DType::f32) {
      cuda::load<N>(static_cast<const float*>(data) + index, values);
    } else if (dtype == DType::bf16) {
      cuda::load<N>(static_cast<const __nv_bfloat16*>(data) + index, values);
    } else {
      cuda::load<N>(static_cast<const __half*>(data) + index, values);
    }
  }
};

// Whether packs of `count` neighbours lie on their natural boundaries in every row of the tensor.
inline bool packs_fit(const TensorView& view, int count) {
  const int64_t bytes = bytes_of(view.dtype);
  const int64_t boundary = alignment_of(static_cast<int>(bytes) * count);
  bool fit = reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(boundary) == 0 &&
             view.size[view.dims - 1] % count == 0;
  for (int i = 0; i < view.dims - 1; ++i) {
    fit = fit && (view.size[i] <= 1 || view.stride[i] * bytes % boundary == 0);
  }
  return fit;
}

// ---- choosing a kernel ----

template <int N>
struct Width {
  static constexpr int value = N;
};

// body(T{}, Width<N>{}) with T the storage type and N the elements of a pack: 16 bytes where every
// tensor allows, else 1.
template <class Body, class... Views>
void with_packs(DType dtype, Body&& body, const Views&... views) {
  const auto choose = [&](auto element, auto width) {
    if ((packs_fit(views, width.value) && ...)) {
      body(element, width);
    } else {
      body(element, Width<1>{});
    }
  };
  switch (dtype) {
    case DType::f32:
      return choose(float{}, Width<4>{});
    case DType::bf16:
      return choose(__nv_bfloat16{}, Width<8>{});
    case DType::f16:
      return choose(__half{}, Width<8>{});
    case DType::u8:
    case DType::i32:
      throw std::invalid_argument("tokens: are not of a floating-point type");
  }
}

// Threads for a row of that many packs: three quarters of them or more have work at common widths.
inline int threads_for(int64_t packs) { return packs > 512 ? 256 : 128; }

// ---- sums over a warp and over a block ----

constexpr int kWarp = 32;

// The sum over a warp, for every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

struct Pair {
  float first, second;
};

constexpr int kSumFloats = 2 * kWarp;
constexpr std::size_t kSumBytes = kSumFloats * sizeof(float);

// The sums of first and of second over the block's threads, for every thread. `lanes` is shared
// memory for kSumFloats; the order of the additions is fixed.
__device__ __forceinline__ Pair block_sum(Pair mine, float* lanes) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    mine.first += __shfl_xor_sync(0xffffffffu, mine.first, offset);
    mine.second += __shfl_xor_sync(0xffffffffu, mine.second, offset);
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  __syncthreads();  // the sums of the call before have been read
  if (threadIdx.x % kWarp == 0) {
    lanes[warp] = mine.first;
    lanes[kWarp + warp] = mine.second;
  }
  __syncthreads();
  Pair total{0.0f, 0.0f};
  for (int i = 0; i < warps; ++i) {
    total.first += lanes[i];
    total.second += lanes[kWarp + i];
  }
  return total;
}

// ---- layer norm of a row ----

struct RowStatistics {
  float mean, rstd;
};

// In two passes, as on the CPU; the second reads the row from the cache.
template <int N, class T>
__device__ __forceinline__ RowStatistics row_statistics(const T* x, int64_t width, float eps,
                                                        float* lanes) {
  const int64_t step = int64_t{N} * blockDim.x;
  float values[N];
  float sum = 0.0f;
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += step) {
    load<N>(x + i, values);
#pragma unroll
    for (int n = 0; n < N; ++n) sum += values[n];
  }
  const float count = static_cast<float>(width);
  const float mean = block_sum({sum, 0.0f}, lanes).first / count;
  float squares = 0.0f;
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += step) {
    load<N>(x + i, values);
#pragma unroll
    for (int n = 0; n < N; ++n) squares += (values[n] - mean) * (values[n] - mean);
  }
  const float variance = block_sum({squares, 0.0f}, lanes).first / count;
  return {mean, 1.0f / sqrtf(variance + eps)};
}

template <int N, class T>
__device__ __forceinline__ void modulate_row(const T* x, RowStatistics row, const Vectors& shift,
                                             const Vectors& scale, int64_t b, int64_t width,
                                             T* out) {
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float values[N], shifts[N], scales[N];
    load<N>(x + i, values);
    shift.load<N>(b, i, shifts);
    scale.load<N>(b, i, scales);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = (values[n] - row.mean) * row.rstd * (1.0f + scales[n]) + shifts[n];
    }
    store<N>(out + i, values);
  }
}

// The means of w and of w * normal over a row, with w = grad * (1 + scale).
template <int N, class T>
__device__ __forceinline__ Pair row_means(const T* grad, const T* x, RowStatistics row,
                                          const Vectors& scale, int64_t b, int64_t width,
                                          float* lanes) {
  Pair sums{0.0f, 0.0f};
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float grads[N], values[N], scales[N];
    load<N>(grad + i, grads);
    load<N>(x + i, values);
    scale.load<N>(b, i, scales);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float w = grads[n] * (1.0f + scales[n]);
      sums.first += w;
      sums.second += w * ((values[n] - row.mean) * row.rstd);
    }
  }
  const Pair total = block_sum(sums, lanes);
  const float count = static_cast<float>(width);
  return {total.first / count, total.second / count};
}

// ---- sums over tokens ----

// How the tokens of one sample are cut among blocks: a function of the shape alone, so that a sum
// has the same bits on every GPU.
struct TokenChunks {
  int64_t length;  // tokens of a chunk
  int64_t count;   // chunks of a sample

  TokenChunks(int64_t samples, int64_t tokens)
      : length((samples * tokens + kBlocks - 1) / kBlocks), count(0) {
    if (length < 1) length = 1;
    count = (tokens + length - 1) / length;
  }

 private:
  static constexpr int64_t kBlocks = 528;  // four for each multiprocessor of the largest GPUs
};

// Sums of a row's features that a block keeps in shared memory behind the lanes of block_sum; each
// thread has its own columns.
constexpr int64_t kMaxSharedFloats = 3 * 8192;

inline std::size_t shared_sums(int64_t sums, int64_t width) {
  if (sums * width > kMaxSharedFloats) {
    throw std::invalid_argument("tokens: have " + std::to_string(width) +
                                " features, expected at most " +
                                std::to_string(kMaxSharedFloats / sums));
  }
  return kSumBytes + static_cast<std::size_t>(sums * width) * sizeof(float);
}

// results[s][b * width + i] = sum over chunks c, in order, of partials[b][c][s][i].
struct SumResults {
  float* of[3];
};
void add_chunks(const float* partials, int64_t samples, int64_t chunks, int sums, int64_t width,
                const SumResults& results, const Launch& launch);

}  // namespace vidgen::cuda
