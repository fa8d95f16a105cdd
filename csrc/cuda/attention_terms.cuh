// The first kernel of attention's backward pass: the terms of every query for the others.
#pragma once

#include "cuda/attention_backward.cuh"
#include "cuda/rows.cuh"

namespace vidgen::cuda {

constexpr int kTermWarps = 4;

template <class T>
struct AttentionTerms {
  HeadsOf<const T> out, grad_out;
  const float *wide_out, *wide_grad_out;  // the same where they are float32, else null
  const float *lse, *grad_lse;            // grad_lse may be null
  float2* terms;
  T* rounded;  // grad_out as T, (B, M, H, D), where it is float32
  int queries, padded, width;
};

// A warp has one query; a lane has 8 features of it.
template <class T>
__global__ void __launch_bounds__(kTermWarps* kLanesOfWarp) terms_kernel(AttentionTerms<T> a) {
  const int row = static_cast<int>(blockIdx.x) * kTermWarps + warp_of_thread();
  const int heads = static_cast<int>(gridDim.y);
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int64_t head = int64_t{b} * heads + h;
  const int column = 8 * lane_of_thread();
  const bool there = row < a.queries;
  float sum = 0.0f;
  if (there && column < a.width) {
    const auto at = [&](const HeadsOf<const T>& x) {
      return b * x.of_sample + row * x.of_row + h * x.of_head + column;
    };
    float out[8], grad[8];
    if (a.wide_out != nullptr) {
      load<8>(a.wide_out + at(a.out), out);
    } else {
      load<8>(a.out.data + at(a.out), out);
    }
    if (a.wide_grad_out != nullptr) {
      load<8>(a.wide_grad_out + at(a.grad_out), grad);
      store<8>(a.rounded + ((int64_t{b} * a.queries + row) * heads + h) * a.width + column, grad);
    } else {
      load<8>(a.grad_out.data + at(a.grad_out), grad);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) sum += out[n] * grad[n];
  }
  sum = warp_sum(sum);
  if (lane_of_thread() != 0) return;
  float lse = kInfinity;
  if (there) {
    lse = a.lse[head * a.queries + row] * kLog2E;
    if (lse == -kInfinity) lse = kInfinity;  // a weight of 0, whatever the score
    if (a.grad_lse != nullptr) sum -= a.grad_lse[head * a.queries + row];
  }
  a.terms[head * a.padded + row] = make_float2(lse, sum);
}

}  // namespace vidgen::cuda
