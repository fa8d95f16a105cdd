#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256)
    forward_kernel(Rows<const T> x, Vectors shift, Vectors scale, Rows<T> out, float* mean,
                   float* rstd, int64_t length, int64_t width, float eps) {
  float* lanes = dynamic_shared<float>();
  const int64_t token = blockIdx.x;
  const int64_t b = token / length;
  const int64_t l = token % length;
  const T* row = x.at(b, l);
  const RowStatistics statistics = row_statistics<N>(row, width, eps, lanes);
  if (threadIdx.x == 0) {
    mean[token] = statistics.mean;
    rstd[token] = statistics.rstd;
  }
  modulate_row<N>(row, statistics, shift, scale, b, width, out.at(b, l));
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    backward_kernel(Rows<const T> grad_out, Rows<const T> x, Vectors scale, const float* mean,
                    const float* rstd, Rows<T> grad_x, float* partials, int64_t length,
                    int64_t width, TokenChunks chunks) {
  float* lanes = dynamic_shared<float>();
  float* sums = lanes + kSumFloats;  // of the shift's gradient, then of the scale's
  const int64_t b = blockIdx.y;
  const int64_t first = blockIdx.x * chunks.length;
  const int64_t last = first + chunks.length < length ? first + chunks.length : length;
  const int64_t begin = int64_t{N} * threadIdx.x;
  const int64_t step = int64_t{N} * blockDim.x;
  for (int64_t i = begin; i < width; i += step) {
#pragma unroll
    for (int n = 0; n < N; ++n) sums[i + n] = sums[width + i + n] = 0.0f;
  }
  for (int64_t l = first; l < last; ++l) {
    const T* grad = grad_out.at(b, l);
    const T* row = x.at(b, l);
    T* out = grad_x.at(b, l);
    const RowStatistics statistics{mean[b * length + l], rstd[b * length + l]};
    const Pair means = row_means<N>(grad, row, statistics, scale, b, width, lanes);
    for (int64_t i = begin; i < width; i += step) {
      float grads[N], values[N], scales[N];
      load<N>(grad + i, grads);
      load<N>(row + i, values);
      scale.load<N>(b, i, scales);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float normal = (values[n] - statistics.mean) * statistics.rstd;
        sums[i + n] += grads[n];
        sums[width + i + n] += grads[n] * normal;
        const float w = grads[n] * (1.0f + scales[n]);
        values[n] = (w - means.first - normal * means.second) * statistics.rstd;
      }
      store<N>(out + i, values);
    }
  }
  float* partial = partials + (b * chunks.count + blockIdx.x) * 2 * width;
  for (int64_t i = begin; i < width; i += step) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      partial[i + n] = sums[i + n];
      partial[width + i + n] = sums[width + i + n];
    }
  }
}

}  // namespace

int64_t modulate_forward_workspace(const ModulateForward&) { return 0; }

void modulate_forward(const ModulateForward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.x.size[0] * a.x.size[1];
  if (tokens == 0) return;
  with_packs(
      a.x.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int N = decltype(pack)::value;
        const int64_t width = a.x.size[2];
        start("modulate_forward", forward_kernel<T, N>, blocks(tokens), threads_for(width / N),
              kSumBytes, launch, Rows<const T>(a.x), Vectors(a.shift), Vectors(a.scale),
              Rows<T>(a.out), static_cast<float*>(a.mean.data), static_cast<float*>(a.rstd.data),
              a.x.size[1], width, a.eps);
      },
      a.x, a.shift, a.scale, a.out);
}

int64_t modulate_backward_workspace(const ModulateBackward& a) {
  return a.x.size[0] * TokenChunks(a.x.size[0], a.x.size[1]).count * 2 * a.x.size[2];
}

void modulate_backward(const ModulateBackward& a, const Launch& launch) {
  check(a);
  const int64_t samples = a.x.size[0];
  const int64_t width = a.x.size[2];
  const TokenChunks chunks(samples, a.x.size[1]);
  if (samples * chunks.count > 0) {
    with_packs(
        a.x.dtype,
        [&](auto element, auto pack) {
          using T = decltype(element);
          constexpr int N = decltype(pack)::value;
          const std::size_t shared = shared_sums(2, width);
          const dim3 grid(blocks(chunks.count), blocks(samples));
          start("modulate_backward", backward_kernel<T, N>, grid, threads_for(width / N), shared,
                launch, Rows<const T>(a.grad_out), Rows<const T>(a.x), Vectors(a.scale),
                static_cast<const float*>(a.mean.data), static_cast<const float*>(a.rstd.data),
                Rows<T>(a.grad_x), launch.workspace, a.x.size[1], width, chunks);
        },
        a.grad_out, a.x, a.scale, a.grad_x);
  }
  const SumResults results{
      {static_cast<float*>(a.grad_shift.data), static_cast<float*>(a.grad_scale.data), nullptr}};
  add_chunks(launch.workspace, samples, chunks.count, 2, width, results, launch);
}

}  // namespace vidgen::cuda
