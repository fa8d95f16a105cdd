#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256)
    forward_kernel(Rows<const T> x, Rows<const T> y, Vectors gate, Vectors shift, Vectors scale,
                   Rows<T> residual, Rows<T> out, float* mean, float* rstd, int64_t length,
                   int64_t width, float eps) {
  float* lanes = dynamic_shared<float>();
  const int64_t token = blockIdx.x;
  const int64_t b = token / length;
  const int64_t l = token % length;
  const T* x_row = x.at(b, l);
  const T* y_row = y.at(b, l);
  T* row = residual.at(b, l);
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float values[N], branch[N], gates[N];
    load<N>(x_row + i, values);
    load<N>(y_row + i, branch);
    gate.load<N>(b, i, gates);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] += gates[n] * branch[n];
    store<N>(row + i, values);
  }
  // Every thread reads back only what it wrote: the residual as stored, which is what the backward
  // pass starts from.
  const RowStatistics statistics = row_statistics<N>(row, width, eps, lanes);
  if (threadIdx.x == 0) {
    mean[token] = statistics.mean;
    rstd[token] = statistics.rstd;
  }
  modulate_row<N>(row, statistics, shift, scale, b, width, out.at(b, l));
}

// Pointers and sizes of the backward pass, as one argument.
template <class T>
struct Backward {
  Rows<const T> grad_residual, grad_out, residual, y;
  Vectors gate, scale;
  const float *mean, *rstd;
  Rows<T> grad_x, grad_y;
  float* partials;
  int64_t length, width;
  TokenChunks chunks;
};

template <class T, int N>
__global__ void __launch_bounds__(256) backward_kernel(Backward<T> a) {
  float* lanes = dynamic_shared<float>();
  float* sums = lanes + kSumFloats;  // of the gradients of gate, shift and scale
  const int64_t width = a.width;
  const int64_t b = blockIdx.y;
  const int64_t first = blockIdx.x * a.chunks.length;
  const int64_t last = first + a.chunks.length < a.length ? first + a.chunks.length : a.length;
  const int64_t begin = int64_t{N} * threadIdx.x;
  const int64_t step = int64_t{N} * blockDim.x;
  for (int64_t i = begin; i < width; i += step) {
#pragma unroll
    for (int n = 0; n < N; ++n) sums[i + n] = sums[width + i + n] = sums[2 * width + i + n] = 0.0f;
  }
  for (int64_t l = first; l < last; ++l) {
    const T* grad = a.grad_out.at(b, l);
    const T* residual_grad = a.grad_residual.at(b, l);
    const T* row = a.residual.at(b, l);
    const T* y = a.y.at(b, l);
    const RowStatistics statistics{a.mean[b * a.length + l], a.rstd[b * a.length + l]};
    const Pair means = row_means<N>(grad, row, statistics, a.scale, b, width, lanes);
    for (int64_t i = begin; i < width; i += step) {
      float grads[N], values[N], scales[N], gates[N], branch[N], direct[N];
      load<N>(grad + i, grads);
      load<N>(row + i, values);
      load<N>(y + i, branch);
      load<N>(residual_grad + i, direct);
      a.scale.template load<N>(b, i, scales);
      a.gate.template load<N>(b, i, gates);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float normal = (values[n] - statistics.mean) * statistics.rstd;
        const float w = grads[n] * (1.0f + scales[n]);
        const float total = (w - means.first - normal * means.second) * statistics.rstd + direct[n];
        sums[i + n] += total * branch[n];
        sums[width + i + n] += grads[n];
        sums[2 * width + i + n] += grads[n] * normal;
        values[n] = total;
        branch[n] = total * gates[n];
      }
      store<N>(a.grad_x.at(b, l) + i, values);
      store<N>(a.grad_y.at(b, l) + i, branch);
    }
  }
  float* partial = a.partials + (b * a.chunks.count + blockIdx.x) * 3 * width;
  for (int64_t i = begin; i < width; i += step) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      for (int s = 0; s < 3; ++s) partial[s * width + i + n] = sums[s * width + i + n];
    }
  }
}

}  // namespace

int64_t gated_residual_modulate_forward_workspace(const GatedResidualModulateForward&) { return 0; }

void gated_residual_modulate_forward(const GatedResidualModulateForward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.x.size[0] * a.x.size[1];
  if (tokens == 0) return;
  with_packs(
      a.x.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int N = decltype(pack)::value;
        const int64_t width = a.x.size[2];
        start("gated_residual_modulate_forward", forward_kernel<T, N>, blocks(tokens),
              threads_for(width / N), kSumBytes, launch, Rows<const T>(a.x), Rows<const T>(a.y),
              Vectors(a.gate), Vectors(a.shift), Vectors(a.scale), Rows<T>(a.residual),
              Rows<T>(a.out), static_cast<float*>(a.mean.data), static_cast<float*>(a.rstd.data),
              a.x.size[1], width, a.eps);
      },
      a.x, a.y, a.gate, a.shift, a.scale, a.residual, a.out);
}

int64_t gated_residual_modulate_backward_workspace(const GatedResidualModulateBackward& a) {
  const TensorView& x = a.residual;
  return x.size[0] * TokenChunks(x.size[0], x.size[1]).count * 3 * x.size[2];
}

void gated_residual_modulate_backward(const GatedResidualModulateBackward& a,
                                      const Launch& launch) {
  check(a);
  const int64_t samples = a.residual.size[0];
  const int64_t width = a.residual.size[2];
  const TokenChunks chunks(samples, a.residual.size[1]);
  if (samples * chunks.count > 0) {
    with_packs(
        a.residual.dtype,
        [&](auto element, auto pack) {
          using T = decltype(element);
          constexpr int N = decltype(pack)::value;
          const std::size_t shared = shared_sums(3, width);
          const dim3 grid(blocks(chunks.count), blocks(samples));
          const Backward<T> arguments{Rows<const T>(a.grad_residual),
                                      Rows<const T>(a.grad_out),
                                      Rows<const T>(a.residual),
                                      Rows<const T>(a.y),
                                      Vectors(a.gate),
                                      Vectors(a.scale),
                                      static_cast<const float*>(a.mean.data),
                                      static_cast<const float*>(a.rstd.data),
                                      Rows<T>(a.grad_x),
                                      Rows<T>(a.grad_y),
                                      launch.workspace,
                                      a.residual.size[1],
                                      width,
                                      chunks};
          start("gated_residual_modulate_backward", backward_kernel<T, N>, grid,
                threads_for(width / N), shared, launch, arguments);
        },
        a.grad_residual, a.grad_out, a.residual, a.y, a.gate, a.scale, a.grad_x, a.grad_y);
  }
  const SumResults results{{static_cast<float*>(a.grad_gate.data),
                            static_cast<float*>(a.grad_shift.data),
                            static_cast<float*>(a.grad_scale.data)}};
  add_chunks(launch.workspace, samples, chunks.count, 3, width, results, launch);
}

}  // namespace vidgen::cuda
