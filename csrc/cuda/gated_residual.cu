#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(256)
    forward_kernel(Rows<const T> x, Rows<const T> y, Vectors gate, Rows<T> out, int64_t length,
                   int64_t width) {
  const int64_t b = blockIdx.x / length;
  const int64_t l = blockIdx.x % length;
  const T* x_row = x.at(b, l);
  const T* y_row = y.at(b, l);
  T* out_row = out.at(b, l);
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float values[N], branch[N], gates[N];
    load<N>(x_row + i, values);
    load<N>(y_row + i, branch);
    gate.load<N>(b, i, gates);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] += gates[n] * branch[n];
    store<N>(out_row + i, values);
  }
}

// A block has N * blockDim.x columns of one chunk of tokens: every thread its own.
template <class T, int N>
__global__ void __launch_bounds__(256)
    backward_kernel(Rows<const T> grad_out, Rows<const T> y, Vectors gate, Rows<T> grad_y,
                    float* partials, int64_t length, int64_t width, TokenChunks chunks) {
  const int64_t b = blockIdx.z;
  const int64_t i = int64_t{N} * (int64_t{blockIdx.y} * blockDim.x + threadIdx.x);
  if (i >= width) return;
  const int64_t first = blockIdx.x * chunks.length;
  const int64_t last = first + chunks.length < length ? first + chunks.length : length;
  float gates[N];
  gate.load<N>(b, i, gates);
  float sums[N] = {};
#pragma unroll 4
  for (int64_t l = first; l < last; ++l) {
    float grads[N], branch[N];
    load<N>(grad_out.at(b, l) + i, grads);
    load<N>(y.at(b, l) + i, branch);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      sums[n] += grads[n] * branch[n];
      grads[n] *= gates[n];
    }
    store<N>(grad_y.at(b, l) + i, grads);
  }
  float* partial = partials + (b * chunks.count + blockIdx.x) * width + i;
#pragma unroll
  for (int n = 0; n < N; ++n) partial[n] = sums[n];
}

}  // namespace

int64_t gated_residual_forward_workspace(const GatedResidualForward&) { return 0; }

void gated_residual_forward(const GatedResidualForward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.x.size[0] * a.x.size[1];
  if (tokens == 0) return;
  with_packs(
      a.x.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int N = decltype(pack)::value;
        const int64_t width = a.x.size[2];
        start("gated_residual_forward", forward_kernel<T, N>, blocks(tokens),
              threads_for(width / N), 0, launch, Rows<const T>(a.x), Rows<const T>(a.y),
              Vectors(a.gate), Rows<T>(a.out), a.x.size[1], width);
      },
      a.x, a.y, a.gate, a.out);
}

int64_t gated_residual_backward_workspace(const GatedResidualBackward& a) {
  return a.y.size[0] * TokenChunks(a.y.size[0], a.y.size[1]).count * a.y.size[2];
}

void gated_residual_backward(const GatedResidualBackward& a, const Launch& launch) {
  check(a);
  const int64_t samples = a.y.size[0];
  const int64_t width = a.y.size[2];
  const TokenChunks chunks(samples, a.y.size[1]);
  if (samples * chunks.count > 0) {
    with_packs(
        a.y.dtype,
        [&](auto element, auto pack) {
          using T = decltype(element);
          constexpr int N = decltype(pack)::value;
          const int64_t columns = int64_t{N} * 128;
          const dim3 grid(blocks(chunks.count), blocks((width + columns - 1) / columns),
                          blocks(samples));
          start("gated_residual_backward", backward_kernel<T, N>, grid, 128, 0, launch,
                Rows<const T>(a.grad_out), Rows<const T>(a.y), Vectors(a.gate), Rows<T>(a.grad_y),
                launch.workspace, a.y.size[1], width, chunks);
        },
        a.grad_out, a.y, a.gate, a.grad_y);
  }
  const SumResults results{{static_cast<float*>(a.grad_gate.data), nullptr, nullptr}};
  add_chunks(launch.workspace, samples, chunks.count, 1, width, results, launch);
}

}  // namespace vidgen::cuda
