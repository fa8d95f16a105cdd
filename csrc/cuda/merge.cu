// Joins attention over two sets of keys, and the gradients of that. A warp has a row of a head.
#include "cuda/rows.cuh"
#include "vidgen/attention.h"

namespace vidgen::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr float kNothing = -__builtin_huge_valf();

// A (B, L, H, D) tensor, by the number of a row: heads fastest, then tokens.
template <class T>
struct HeadRows {
  T* data;
  int64_t of_sample, of_token, of_head;  // strides

  explicit HeadRows(const TensorView& view)
      : data(static_cast<T*>(view.data)),
        of_sample(view.stride[0]),
        of_token(view.stride[1]),
        of_head(view.stride[2]) {}
};

// Where a warp's row is: in a (B, L, H, D) tensor, and its number in a (B, H, L) tensor.
struct Place {
  int64_t b, l, h, sum;

  __device__ __forceinline__ Place(int64_t row, int64_t length, int64_t heads)
      : b(row / heads / length),
        l(row / heads % length),
        h(row % heads),
        sum((b * heads + h) * length + l) {}
  template <class T>
  __device__ __forceinline__ T* in(const HeadRows<T>& rows) const {
    return rows.data + b * rows.of_sample + l * rows.of_token + h * rows.of_head;
  }
};

struct Shape {
  int64_t rows, length, heads;
  int width;

  explicit Shape(const TensorView& out)
      : rows(out.size[0] * out.size[1] * out.size[2]),
        length(out.size[1]),
        heads(out.size[2]),
        width(static_cast<int>(out.size[3])) {}
};

// The weight of each side, and log(e^a + e^b); both weights are zero if both sides are empty.
struct Weights {
  float a, b, lse;
};

__device__ __forceinline__ Weights weigh(float lse_a, float lse_b) {
  if (lse_a == kNothing && lse_b == kNothing) return {0.0f, 0.0f, kNothing};
  const bool b_leads = lse_b > lse_a;
  // e^(smaller - larger) never overflows, and NaN propagates.
  const float ratio = expf(b_leads ? lse_a - lse_b : lse_b - lse_a);
  const float lead = 1.0f / (1.0f + ratio);
  return {b_leads ? ratio * lead : lead, b_leads ? lead : ratio * lead,
          (b_leads ? lse_b : lse_a) + log1pf(ratio)};
}

template <class T>
struct Forward {
  HeadRows<const float> out_a;
  HeadRows<const T> out_b;
  HeadRows<float> out;
  const float *lse_a, *lse_b;
  float* lse;
  Shape shape;
};

template <class T, int N>
__global__ void __launch_bounds__(kWarps* kWarp) forward_kernel(Forward<T> a) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= a.shape.rows) return;
  const Place place(row, a.shape.length, a.shape.heads);
  const Weights weights = weigh(a.lse_a[place.sum], a.lse_b[place.sum]);
  const float* out_a = place.in(a.out_a);
  const T* out_b = place.in(a.out_b);
  float* out = place.in(a.out);
  for (int i = N * static_cast<int>(threadIdx.x % kWarp); i < a.shape.width; i += N * kWarp) {
    float first[N], second[N];
    load<N>(out_a + i, first);
    load<N>(out_b + i, second);
#pragma unroll
    for (int n = 0; n < N; ++n) first[n] = weights.a * first[n] + weights.b * second[n];
    store<N>(out + i, first);
  }
  __syncwarp();  // lse may be lse_a: every lane has read it
  if (threadIdx.x % kWarp == 0) a.lse[place.sum] = weights.lse;
}

template <class T>
struct Backward {
  HeadRows<const float> grad_out, out_a;
  HeadRows<const T> out_b;
  HeadRows<float> grad_out_a;
  HeadRows<T> grad_out_b;
  const float *grad_lse, *lse_a, *lse_b;
  float *grad_lse_a, *grad_lse_b;
  Shape shape;
};

template <class T, int N>
__global__ void __launch_bounds__(kWarps* kWarp) backward_kernel(Backward<T> a) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= a.shape.rows) return;
  const Place place(row, a.shape.length, a.shape.heads);
  const Weights weights = weigh(a.lse_a[place.sum], a.lse_b[place.sum]);
  const float* grad_out = place.in(a.grad_out);
  const float* out_a = place.in(a.out_a);
  const T* out_b = place.in(a.out_b);
  float* grad_out_a = place.in(a.grad_out_a);
  T* grad_out_b = place.in(a.grad_out_b);
  float dot = 0.0f;
  for (int i = N * static_cast<int>(threadIdx.x % kWarp); i < a.shape.width; i += N * kWarp) {
    float grads[N], first[N], second[N];
    load<N>(grad_out + i, grads);
    load<N>(out_a + i, first);
    load<N>(out_b + i, second);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      dot += grads[n] * (second[n] - first[n]);
      first[n] = weights.a * grads[n];
      second[n] = weights.b * grads[n];
    }
    store<N>(grad_out_a + i, first);
    store<N>(grad_out_b + i, second);
  }
  const float shift = weights.a * weights.b * warp_sum(dot);
  if (threadIdx.x % kWarp == 0) {
    const float grad = a.grad_lse[place.sum];
    a.grad_lse_a[place.sum] = weights.a * grad - shift;
    a.grad_lse_b[place.sum] = weights.b * grad + shift;
  }
}

template <class T>
T* data_of(const TensorView& view) {
  return static_cast<T*>(view.data);
}

}  // namespace

int64_t merge_forward_workspace(const MergeForward&) { return 0; }

void merge_forward(const MergeForward& a, const Launch& launch) {
  check(a);
  if (a.out.elements() == 0) return;
  with_packs(
      a.out_b.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        const Forward<T> arguments{HeadRows<const float>(a.out_a),
                                   HeadRows<const T>(a.out_b),
                                   HeadRows<float>(a.out),
                                   data_of<const float>(a.lse_a),
                                   data_of<const float>(a.lse_b),
                                   data_of<float>(a.lse),
                                   Shape(a.out)};
        start("merge_forward", forward_kernel<T, decltype(pack)::value>,
              blocks((arguments.shape.rows + kWarps - 1) / kWarps), kWarps * kWarp, 0, launch,
              arguments);
      },
      a.out_a, a.out_b, a.out);
}

int64_t merge_backward_workspace(const MergeBackward&) { return 0; }

void merge_backward(const MergeBackward& a, const Launch& launch) {
  check(a);
  if (a.grad_out.elements() == 0) return;
  with_packs(
      a.out_b.dtype,
      [&](auto element, auto pack) {
        using T = decltype(element);
        const Backward<T> arguments{HeadRows<const float>(a.grad_out),
                                    HeadRows<const float>(a.out_a),
                                    HeadRows<const T>(a.out_b),
                                    HeadRows<float>(a.grad_out_a),
                                    HeadRows<T>(a.grad_out_b),
                                    data_of<const float>(a.grad_lse),
                                    data_of<const float>(a.lse_a),
                                    data_of<const float>(a.lse_b),
                                    data_of<float>(a.grad_lse_a),
                                    data_of<float>(a.grad_lse_b),
                                    Shape(a.grad_out)};
        start("merge_backward", backward_kernel<T, decltype(pack)::value>,
              blocks((arguments.shape.rows + kWarps - 1) / kWarps), kWarps * kWarp, 0, launch,
              arguments);
      },
      a.grad_out, a.out_a, a.out_b, a.grad_out_a, a.grad_out_b);
}

}  // namespace vidgen::cuda
