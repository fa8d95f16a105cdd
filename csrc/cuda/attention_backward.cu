// Attention's backward pass on the host: the workspace, and three kernels one after the other.
#include "cuda/attention_grad_keys.cuh"
#include "cuda/attention_grad_queries.cuh"
#include "cuda/attention_terms.cuh"

namespace vidgen::cuda {
namespace {

int64_t term_floats(const TensorView& q) {
  return q.size[0] * q.size[2] * padded_queries(q.size[1]) * 2;
}

template <class T>
const float* wide(const TensorView& view) {
  return view.dtype == DType::f32 ? static_cast<const float*>(view.data) : nullptr;
}

// The terms of every query; returns grad_out as heads of type T.
template <class T>
HeadsOf<const T> start_terms(const AttentionBackward& a, const Launch& launch) {
  const int64_t queries = a.q.size[1], heads = a.q.size[2], width = a.q.size[3];
  T* rounded = reinterpret_cast<T*>(launch.workspace + term_floats(a.q));
  const AttentionTerms<T> arguments{
      HeadsOf<const T>(a.out),
      HeadsOf<const T>(a.grad_out),
      wide<T>(a.out),
      wide<T>(a.grad_out),
      static_cast<const float*>(a.lse.data),
      a.grad_lse.dims != 0 ? static_cast<const float*>(a.grad_lse.data) : nullptr,
      reinterpret_cast<float2*>(launch.workspace),
      rounded,
      static_cast<int>(queries),
      static_cast<int>(padded_queries(queries)),
      static_cast<int>(width)};
  const dim3 grid(blocks(padded_queries(queries) / kTermWarps), blocks(heads), blocks(a.q.size[0]));
  start("attention_backward", terms_kernel<T>, grid, kTermWarps * kLanesOfWarp, 0, launch,
        arguments);
  if (a.grad_out.dtype != DType::f32) return HeadsOf<const T>(a.grad_out);
  return HeadsOf<const T>(rounded, queries * heads * width, heads * width, width);
}

template <class T, int kWidth>
void start_gradients(const AttentionBackward& a, const HeadsOf<const T>& grad_out,
                     const Launch& launch) {
  const int64_t samples = a.q.size[0], queries = a.q.size[1], heads = a.q.size[2];
  const AttentionGradients<T> arguments{HeadsOf<const T>(a.q),
                                        HeadsOf<const T>(a.k),
                                        HeadsOf<const T>(a.v),
                                        grad_out,
                                        reinterpret_cast<const float2*>(launch.workspace),
                                        Results<T>(a.grad_q),
                                        Results<T>(a.grad_k),
                                        Results<T>(a.grad_v),
                                        Visible(a.key_lengths, a.blocks, a.k.size[1]),
                                        static_cast<int>(queries),
                                        static_cast<int>(padded_queries(queries)),
                                        static_cast<int>(a.q.size[3]),
                                        a.scale};
  if (a.k.elements() > 0) {
    using S = GradKeysShape<kWidth>;
    const dim3 grid(blocks((a.k.size[1] + S::kKeys - 1) / S::kKeys), blocks(heads * S::kParts),
                    blocks(samples));
    start("attention_backward", grad_keys_kernel<T, kWidth>, grid, S::kThreads, S::kShared, launch,
          arguments);
  }
  if (a.q.elements() > 0) {
    using S = GradQueriesShape<kWidth>;
    const dim3 grid(blocks((queries + S::kRows - 1) / S::kRows), blocks(heads), blocks(samples));
    start("attention_backward", grad_queries_kernel<T, kWidth>, grid, S::kThreads, S::kShared,
          launch, arguments);
  }
}

}  // namespace

int64_t attention_backward_workspace(const AttentionBackward& a) {
  const int64_t rounded = a.grad_out.dtype == DType::f32 ? (a.grad_out.elements() + 1) / 2 : 0;
  return term_floats(a.q) + rounded;
}

void attention_backward(const AttentionBackward& a, const Launch& launch) {
  check(a);
  expect_chunks("q", a.q);
  expect_chunks("k", a.k);
  expect_chunks("v", a.v);
  expect_chunks("out", a.out);
  expect_chunks("grad_out", a.grad_out);
  expect_chunks("grad_q", a.grad_q);
  expect_chunks("grad_k", a.grad_k);
  expect_chunks("grad_v", a.grad_v);
  with_tiles("q", a.q, [&](auto element, auto width) {
    using T = decltype(element);
    HeadsOf<const T> grad_out(a.grad_out);
    if (a.q.elements() > 0) grad_out = start_terms<T>(a, launch);
    start_gradients<T, decltype(width)::value>(a, grad_out, launch);
  });
}

}  // namespace vidgen::cuda
