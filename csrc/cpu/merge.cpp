// Joins attention over two sets of keys, and the gradients of that.
#include <math.h>

#include "cpu/attention_tiles.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

// The weight of each side, and log(e^a + e^b); both weights are zero if both sides are empty.
struct Weights {
  float a, b, lse;
};

VIDGEN_INLINE Weights weigh(float lse_a, float lse_b) {
  const bool b_leads = lse_b > lse_a;
  const float most = b_leads ? lse_b : lse_a;
  if (lse_a == -kInfinity && lse_b == -kInfinity) return {0.0f, 0.0f, -kInfinity};
  // e^(smaller - larger) never overflows, and NaN propagates.
  const float ratio = expf(b_leads ? lse_a - lse_b : lse_b - lse_a);
  const float lead = 1.0f / (1.0f + ratio);
  return {b_leads ? ratio * lead : lead, b_leads ? lead : ratio * lead, most + log1pf(ratio)};
}

// body(b, h, l, index of the row in a (B, H, L) tensor) for every row of a (B, L, H, D) tensor.
template <class Body>
VIDGEN_INLINE void for_rows(const TensorView& x, int threads, Body&& body) {
  const int64_t length = x.size[1], heads = x.size[2];
  const int64_t tokens = x.size[0] * length;
  const int64_t per_chunk = rows_per_chunk(tokens, x.size[3] * larger(1, heads), threads);
  in_parallel(divided_up(tokens, per_chunk), threads, [&](int64_t chunk) {
    const int64_t end = smaller(tokens, (chunk + 1) * per_chunk);
    for (int64_t n = chunk * per_chunk; n < end; ++n) {
      const int64_t b = n / length, l = n % length;
      for (int64_t h = 0; h < heads; ++h) body(b, h, l, (b * heads + h) * length + l);
    }
  });
}

}  // namespace

void merge_forward(const MergeForward& a, int threads) {
  with_type(a.out_b.dtype, [&](auto type) {
    using T = decltype(type);
    for_rows(a.out, threads, [&](int64_t b, int64_t h, int64_t l, int64_t n) {
      const Weights w = weigh(floats(a.lse_a)[n], floats(a.lse_b)[n]);
      const float* out_a = row<const float>(a.out_a, b, l, h);
      const T* out_b = row<const T>(a.out_b, b, l, h);
      float* out = row<float>(a.out, b, l, h);
      over_vectors(a.out.size[3], [&](auto at, int) VIDGEN_LAMBDA {
        at.store(out, spread(w.a) * at.load(out_a) + spread(w.b) * at.load(out_b));
      });
      floats(a.lse)[n] = w.lse;
    });
  });
}

void merge_backward(const MergeBackward& a, int threads) {
  with_type(a.out_b.dtype, [&](auto type) {
    using T = decltype(type);
    for_rows(a.out_a, threads, [&](int64_t b, int64_t h, int64_t l, int64_t n) {
      const Weights w = weigh(floats(a.lse_a)[n], floats(a.lse_b)[n]);
      const float* grad = row<const float>(a.grad_out, b, l, h);
      const float* out_a = row<const float>(a.out_a, b, l, h);
      const T* out_b = row<const T>(a.out_b, b, l, h);
      float* grad_a = row<float>(a.grad_out_a, b, l, h);
      T* grad_b = row<T>(a.grad_out_b, b, l, h);
      VectorSums dot;
      over_vectors(a.out_a.size[3], [&](auto at, int s) VIDGEN_LAMBDA {
        const Floats g = at.load(grad);
        dot.part[s] += g * (at.load(out_b) - at.load(out_a));
        at.store(grad_a, g * spread(w.a));
        at.store(grad_b, g * spread(w.b));
      });
      const float shift = w.a * w.b * dot.total();
      floats(a.grad_lse_a)[n] = w.a * floats(a.grad_lse)[n] - shift;
      floats(a.grad_lse_b)[n] = w.b * floats(a.grad_lse)[n] + shift;
    });
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
