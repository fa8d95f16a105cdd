#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

constexpr float kSlope = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// (1 + tanh(u)) / 2 = logistic(2u), from t = e^(-2|u|), which neither loses digits nor overflows.
struct Logistic {
  float value, times_complement;
};

__device__ __forceinline__ Logistic logistic_of_2u(float x) {
  const float u = kSlope * (x + kCubic * x * x * x);
  const float t = expf(-2.0f * fabsf(u));
  const float inverse = 1.0f / (1.0f + t);
  return {u < 0.0f ? t * inverse : inverse, t * inverse * inverse};
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    forward_kernel(Rows<const T> x, Rows<T> out, int64_t length, int64_t width) {
  const int64_t b = blockIdx.x / length;
  const int64_t l = blockIdx.x % length;
  const T* row = x.at(b, l);
  T* out_row = out.at(b, l);
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float values[N];
    load<N>(row + i, values);
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] *= logistic_of_2u(values[n]).value;
    store<N>(out_row + i, values);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    backward_kernel(Rows<const T> grad_out, Rows<const T> x, Rows<T> grad_x, int64_t length,
                    int64_t width) {
  const int64_t b = blockIdx.x / length;
  const int64_t l = blockIdx.x % length;
  const T* row = x.at(b, l);
  const T* grad = grad_out.at(b, l);
  T* out = grad_x.at(b, l);
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float values[N], grads[N];
    load<N>(row + i, values);
    load<N>(grad + i, grads);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float v = values[n];
      const Logistic s = logistic_of_2u(v);
      const float twice_du = 2.0f * kSlope * (1.0f + 3.0f * kCubic * v * v);
      grads[n] *= s.value + v * s.times_complement * twice_du;
    }
    store<N>(out + i, grads);
  }
}

}  // namespace

int64_t gelu_tanh_forward_workspace(const GeluTanhForward&) { return 0; }

void gelu_tanh_forward(const GeluTanhForward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.x.size[0] * a.x.size[1];
  if (tokens == 0) return;
  with_packs(
      a.x.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int N = decltype(pack)::value;
        const int64_t width = a.x.size[2];
        start("gelu_tanh_forward", forward_kernel<T, N>, blocks(tokens), threads_for(width / N), 0,
              launch, Rows<const T>(a.x), Rows<T>(a.out), a.x.size[1], width);
      },
      a.x, a.out);
}

int64_t gelu_tanh_backward_workspace(const GeluTanhBackward&) { return 0; }

void gelu_tanh_backward(const GeluTanhBackward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.x.size[0] * a.x.size[1];
  if (tokens == 0) return;
  with_packs(
      a.x.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        constexpr int N = decltype(pack)::value;
        const int64_t width = a.x.size[2];
        start("gelu_tanh_backward", backward_kernel<T, N>, blocks(tokens), threads_for(width / N),
              0, launch, Rows<const T>(a.grad_out), Rows<const T>(a.x), Rows<T>(a.grad_x),
              a.x.size[1], width);
      },
      a.grad_out, a.x, a.grad_x);
}

}  // namespace vidgen::cuda
