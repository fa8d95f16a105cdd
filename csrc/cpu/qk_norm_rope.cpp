#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

template <class T>
VIDGEN_INLINE float reciprocal_rms(const T* x, int64_t width, float eps) {
  Sums squares;
  over(width, [&](auto at, int s) VIDGEN_LAMBDA {
    const Floats value = at.load(x);
    squares.part[s] += value * value;
  });
  return 1.0f / __builtin_sqrtf(squares.total() / float(width) + eps);
}

template <class T>
VIDGEN_INLINE void head_forward(const T* x, const float* scale, const float* cos, const float* sin,
                                int64_t pairs, float eps, T* out) {
  const float rstd = reciprocal_rms(x, 2 * pairs, eps);
  over(pairs, [&](auto at, int) VIDGEN_LAMBDA {
    const Floats first = at.load(x) * rstd * at.load(scale);
    const Floats second = at.load(x + pairs) * rstd * at.load(scale + pairs);
    const Floats c = at.load(cos);
    const Floats s = at.load(sin);
    at.store(out, first * c - second * s);
    at.store(out + pairs, second * c + first * s);
  });
}

// Tokens handled as one chunk.
constexpr int64_t kTokensPerChunk = 16;

// The sums over heads live in registers, so the heads are the inner loop of the last pass.
constexpr int64_t kHeadsAtOnce = 32;

struct HeadMoments {
  float rstd;
  float w_normal;  // mean of w * normal, with w = (gradient before the rotation) * scale
};

template <class T>
VIDGEN_INLINE HeadMoments head_moments(const T* grad, const T* x, const float* scale,
                                       const float* cos, const float* sin, int64_t pairs,
                                       float eps) {
  const float rstd = reciprocal_rms(x, 2 * pairs, eps);
  Sums dot;
  over(pairs, [&](auto at, int part) VIDGEN_LAMBDA {
    const Floats c = at.load(cos);
    const Floats s = at.load(sin);
    const Floats g1 = at.load(grad);
    const Floats g2 = at.load(grad + pairs);
    dot.part[part] += (g1 * c + g2 * s) * at.load(scale) * at.load(x);
    dot.part[part] += (g2 * c - g1 * s) * at.load(scale + pairs) * at.load(x + pairs);
  });
  return {rstd, dot.total() * rstd / float(2 * pairs)};
}

// One of q and k.
struct Side {
  const TensorView *grad_out, *x, *grad_x;
  const float* scale;
};

template <class T>
VIDGEN_INLINE void token_backward(const Side& side, int64_t b, int64_t l, const float* cos,
                                  const float* sin, float eps, float* grad_scale) {
  const int64_t heads = side.x->size[2];
  const int64_t pairs = side.x->size[3] / 2;
  const float* scale = side.scale;
  for (int64_t first = 0; first < heads; first += kHeadsAtOnce) {
    const int64_t count = smaller(kHeadsAtOnce, heads - first);
    HeadMoments moments[kHeadsAtOnce];
    for (int64_t h = 0; h < count; ++h) {
      moments[h] =
          head_moments(row<const T>(*side.grad_out, b, l, first + h),
                       row<const T>(*side.x, b, l, first + h), scale, cos, sin, pairs, eps);
    }
    over(pairs, [&](auto at, int) VIDGEN_LAMBDA {
      const Floats c = at.load(cos);
      const Floats s = at.load(sin);
      const Floats scale1 = at.load(scale);
      const Floats scale2 = at.load(scale + pairs);
      Floats sum1 = {};
      Floats sum2 = {};
      for (int64_t h = 0; h < count; ++h) {
        const T* grad = row<const T>(*side.grad_out, b, l, first + h);
        const T* x = row<const T>(*side.x, b, l, first + h);
        T* out = row<T>(*side.grad_x, b, l, first + h);
        const Floats g1 = at.load(grad);
        const Floats g2 = at.load(grad + pairs);
        const Floats before1 = g1 * c + g2 * s;
        const Floats before2 = g2 * c - g1 * s;
        const Floats normal1 = at.load(x) * moments[h].rstd;
        const Floats normal2 = at.load(x + pairs) * moments[h].rstd;
        sum1 += before1 * normal1;
        sum2 += before2 * normal2;
        at.store(out, (before1 * scale1 - normal1 * moments[h].w_normal) * moments[h].rstd);
        at.store(out + pairs, (before2 * scale2 - normal2 * moments[h].w_normal) * moments[h].rstd);
      }
      at.store(grad_scale, at.load(grad_scale) + sum1);
      at.store(grad_scale + pairs, at.load(grad_scale + pairs) + sum2);
    });
  }
}

}  // namespace

void qk_norm_rope_forward(const QkNormRopeForward& a, int threads) {
  const int64_t length = a.q.size[1];
  const int64_t heads = a.q.size[2];
  const int64_t width = a.q.size[3];
  const int64_t pairs = width / 2;
  const int64_t tokens = a.q.size[0] * length;
  float* q_scale = scratch(std::size_t(2 * width));
  float* k_scale = q_scale + width;
  read_vector(a.q_scale.data, a.q_scale.dtype, width, 0.0f, q_scale);
  read_vector(a.k_scale.data, a.k_scale.dtype, width, 0.0f, k_scale);
  const int64_t per_chunk = rows_per_chunk(2 * heads * width);
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    in_parallel(divided_up(tokens, per_chunk), threads, [&](int64_t chunk) {
      const int64_t end = smaller(tokens, (chunk + 1) * per_chunk);
      for (int64_t n = chunk * per_chunk; n < end; ++n) {
        const int64_t b = n / length;
        const int64_t l = n % length;
        const float* cos = floats(a.cos) + l * pairs;
        const float* sin = floats(a.sin) + l * pairs;
        for (int64_t h = 0; h < heads; ++h) {
          head_forward(row<const T>(a.q, b, l, h), q_scale, cos, sin, pairs, a.eps,
                       row<T>(a.q_out, b, l, h));
        }
        for (int64_t h = 0; h < heads; ++h) {
          head_forward(row<const T>(a.k, b, l, h), k_scale, cos, sin, pairs, a.eps,
                       row<T>(a.k_out, b, l, h));
        }
      }
    });
  });
}

void qk_norm_rope_backward(const QkNormRopeBackward& a, int threads) {
  const int64_t length = a.q.size[1];
  const int64_t width = a.q.size[3];
  const int64_t pairs = width / 2;
  const int64_t tokens = a.q.size[0] * length;
  // One sum over the tokens of all samples.
  TokenChunks chunks(tokens);
  chunks.length = kTokensPerChunk;
  chunks.count = divided_up(tokens, kTokensPerChunk);
  float* q_scale = scratch(std::size_t((2 + 2 + 2 * chunks.count) * width));
  float* k_scale = q_scale + width;
  float* sums = k_scale + width;
  float* partials = sums + 2 * width;
  read_vector(a.q_scale.data, a.q_scale.dtype, width, 0.0f, q_scale);
  read_vector(a.k_scale.data, a.k_scale.dtype, width, 0.0f, k_scale);
  const Side q = {&a.grad_q_out, &a.q, &a.grad_q, q_scale};
  const Side k = {&a.grad_k_out, &a.k, &a.grad_k, k_scale};
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    sum_over_tokens(1, chunks, 2 * width, threads, partials, sums,
                    [&](int64_t, int64_t first, int64_t last, float* partial) {
                      for (int64_t n = first; n < last; ++n) {
                        const int64_t b = n / length;
                        const int64_t l = n % length;
                        const float* cos = floats(a.cos) + l * pairs;
                        const float* sin = floats(a.sin) + l * pairs;
                        token_backward<T>(q, b, l, cos, sin, a.eps, partial);
                        token_backward<T>(k, b, l, cos, sin, a.eps, partial + width);
                      }
                    });
  });
  std::memcpy(a.grad_q_scale.data, sums, std::size_t(width) * sizeof(float));
  std::memcpy(a.grad_k_scale.data, sums + width, std::size_t(width) * sizeof(float));
}

}  // namespace vidgen::cpu::VIDGEN_ISA
