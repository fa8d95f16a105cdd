#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

// Tokens handled as one chunk of the sums over tokens.
constexpr int64_t kTokensPerChunk = 16;

// Heads whose sums are computed together: square roots and divisions have a long latency, so they
// are vectorised over many heads.
constexpr int64_t kHeadsAtOnce = 32;

constexpr int64_t kMaxPairs = kMaxHeadWidth / 2;

// What turns both halves of a head, in the order rows have: (x1, x2) becomes
// (x1 * cos1 - x2 * sin2, x2 * cos2 + x1 * sin1), the norm's scale included.
struct Turn {
  float cos1[kMaxPairs], sin1[kMaxPairs];
  float cos2[kMaxPairs], sin2[kMaxPairs];
};

template <class T>
VIDGEN_INLINE void prepare(const float* scale, const float* cos, const float* sin, int64_t pairs,
                           Turn& turn) {
  const float* scale2 = scale + whole_pairs(pairs);
  over<T>(pairs, [&](auto at, int) VIDGEN_LAMBDA {
    const Pair c = cleaned(at.plain(cos));
    const Pair s = cleaned(at.plain(sin));
    at.put_beside(turn.cos1, c * at.beside(scale));
    at.put_beside(turn.sin1, s * at.beside(scale));
    at.put_beside(turn.cos2, c * at.beside(scale2));
    at.put_beside(turn.sin2, s * at.beside(scale2));
  });
}

// Sums of squares become the reciprocal of the root of their mean.
VIDGEN_INLINE void reciprocal_roots(float (&squares)[kHeadsAtOnce], int64_t width, float eps) {
  const Floats count = fill(float(width));
  for (int64_t h = 0; h < kHeadsAtOnce; h += kLanes) {
    const Floats rstd = 1.0f / root(load_vector<Floats>(squares + h) / count + eps);
    std::memcpy(squares + h, &rstd, sizeof rstd);
  }
}

template <class T>
VIDGEN_INLINE void token_forward(const TensorView& x, const TensorView& out, int64_t b, int64_t l,
                                 const Turn& turn, float eps) {
  const int64_t heads = x.size[2];
  const int64_t pairs = x.size[3] / 2;
  for (int64_t first = 0; first < heads; first += kHeadsAtOnce) {
    const int64_t count = smaller(kHeadsAtOnce, heads - first);
    float rstd[kHeadsAtOnce] = {};
    for (int64_t h = 0; h < count; ++h) {
      const T* head = row<const T>(x, b, l, first + h);
      Sums squares;
      over<T>(2 * pairs, [&](auto at, int s) VIDGEN_LAMBDA {
        const Pair value = at.load(head);
        squares.part[s] = squares.part[s] + value * value;
      });
      rstd[h] = squares.total();
    }
    reciprocal_roots(rstd, 2 * pairs, eps);
    for (int64_t h = 0; h < count; ++h) {
      const T* head = row<const T>(x, b, l, first + h);
      T* to = row<T>(out, b, l, first + h);
      over<T>(pairs, [&](auto at, int) VIDGEN_LAMBDA {
        const Pair x1 = at.load(head) * rstd[h];
        const Pair x2 = at.load(head + pairs) * rstd[h];
        at.store(to, x1 * at.beside(turn.cos1) - x2 * at.beside(turn.sin2));
        at.store(to + pairs, x2 * at.beside(turn.cos2) + x1 * at.beside(turn.sin1));
      });
    }
  }
}

// One of q and k.
struct Side {
  const TensorView *grad_out, *x, *grad_x;
  const float* scale;
};

struct HeadSums {
  float squares;  // of x
  float dot;      // of w and x, with w = (gradient before the rotation) * scale
};

template <class T>
VIDGEN_INLINE HeadSums head_sums(const T* grad, const T* x, const Turn& turn, int64_t pairs) {
  Pair squares = {};
  Pair dot = {};
  over<T>(pairs, [&](auto at, int) VIDGEN_LAMBDA {
    const Pair x1 = at.load(x);
    const Pair x2 = at.load(x + pairs);
    const Pair g1 = at.load(grad);
    const Pair g2 = at.load(grad + pairs);
    squares = squares + x1 * x1 + x2 * x2;
    const Pair w1 = g1 * at.beside(turn.cos1) + g2 * at.beside(turn.sin1);
    const Pair w2 = g2 * at.beside(turn.cos2) - g1 * at.beside(turn.sin2);
    dot = dot + w1 * x1 + w2 * x2;
  });
  return {sum(squares.a + squares.b), sum(dot.a + dot.b)};
}

// What one vector of each half of a head becomes, and adds to the gradient of the scale.
struct Turned {
  Floats out1, out2, of_scale1, of_scale2;
};

VIDGEN_INLINE Turned turn_back(Floats g1, Floats g2, Floats x1, Floats x2, Floats c, Floats s,
                               Floats scale1, Floats scale2, float rstd, float w_normal) {
  const Floats before1 = g1 * c + g2 * s;
  const Floats before2 = g2 * c - g1 * s;
  const Floats normal1 = x1 * rstd;
  const Floats normal2 = x2 * rstd;
  return {(before1 * scale1 - normal1 * w_normal) * rstd,
          (before2 * scale2 - normal2 * w_normal) * rstd, before1 * normal1, before2 * normal2};
}

template <class T>
VIDGEN_INLINE void token_backward(const Side& side, int64_t b, int64_t l, const float* cos,
                                  const float* sin, float eps, float* grad_scale) {
  const int64_t heads = side.x->size[2];
  const int64_t pairs = side.x->size[3] / 2;
  const int64_t room = whole_pairs(pairs);
  float* grad_scale2 = grad_scale + room;
  Turn turn;  // with the scale, and without it in `plain`
  Turn plain;
  prepare<T>(side.scale, cos, sin, pairs, turn);
  over<T>(pairs, [&](auto at, int) VIDGEN_LAMBDA {
    at.put_beside(plain.cos1, cleaned(at.plain(cos)));
    at.put_beside(plain.sin1, cleaned(at.plain(sin)));
  });
  for (int64_t first = 0; first < heads; first += kHeadsAtOnce) {
    const int64_t count = smaller(kHeadsAtOnce, heads - first);
    float rstds[kHeadsAtOnce] = {};
    float dots[kHeadsAtOnce];
    for (int64_t h = 0; h < count; ++h) {
      const HeadSums sums = head_sums(row<const T>(*side.grad_out, b, l, first + h),
                                      row<const T>(*side.x, b, l, first + h), turn, pairs);
      rstds[h] = sums.squares;
      dots[h] = sums.dot;
    }
    reciprocal_roots(rstds, 2 * pairs, eps);
    for (int64_t h = 0; h < count; ++h) {
      const T* grad = row<const T>(*side.grad_out, b, l, first + h);
      const T* x = row<const T>(*side.x, b, l, first + h);
      T* out = row<T>(*side.grad_x, b, l, first + h);
      const float rstd = rstds[h];
      const float w_normal = dots[h] * rstd * (1.0f / float(2 * pairs));  // mean of w * normal
      over<T>(pairs, [&](auto at, int) VIDGEN_LAMBDA {
        const Pair c = at.beside(plain.cos1);
        const Pair s = at.beside(plain.sin1);
        const Pair scale1 = at.beside(side.scale);
        const Pair scale2 = at.beside(side.scale + room);
        const Pair g1 = at.load(grad);
        const Pair g2 = at.load(grad + pairs);
        const Pair x1 = at.load(x);
        const Pair x2 = at.load(x + pairs);
        const Turned a =
            turn_back(g1.a, g2.a, x1.a, x2.a, c.a, s.a, scale1.a, scale2.a, rstd, w_normal);
        const Turned b =
            turn_back(g1.b, g2.b, x1.b, x2.b, c.b, s.b, scale1.b, scale2.b, rstd, w_normal);
        at.put_beside(grad_scale, at.beside(grad_scale) + Pair{a.of_scale1, b.of_scale1});
        at.put_beside(grad_scale2, at.beside(grad_scale2) + Pair{a.of_scale2, b.of_scale2});
        at.store(out, {a.out1, b.out1});
        at.store(out + pairs, {a.out2, b.out2});
      });
    }
  }
}

// The halves of a scale, each filled up to whole pairs.
template <class T>
VIDGEN_INLINE void read_scale(const TensorView& view, float* scale) {
  const int64_t pairs = view.size[0] / 2;
  const char* second = static_cast<const char*>(view.data) + pairs * bytes_of(view.dtype);
  read_vector<T>(view.data, view.dtype, pairs, 0.0f, scale);
  read_vector<T>(second, view.dtype, pairs, 0.0f, scale + whole_pairs(pairs));
}

template <class T>
VIDGEN_INLINE void write_scale(const float* sums, const TensorView& view) {
  const int64_t pairs = view.size[0] / 2;
  write_vector<T>(sums, pairs, floats(view));
  write_vector<T>(sums + whole_pairs(pairs), pairs, floats(view) + pairs);
}

}  // namespace

void qk_norm_rope_forward(const QkNormRopeForward& a, int threads) {
  const int64_t length = a.q.size[1];
  const int64_t heads = a.q.size[2];
  const int64_t width = a.q.size[3];
  const int64_t pairs = width / 2;
  const int64_t tokens = a.q.size[0] * length;
  const int64_t room = 2 * whole_pairs(pairs);
  float* q_scale = scratch(std::size_t(2 * room));
  float* k_scale = q_scale + room;
  const int64_t per_chunk = rows_per_chunk(tokens, 2 * heads * width, threads);
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    read_scale<T>(a.q_scale, q_scale);
    read_scale<T>(a.k_scale, k_scale);
    in_parallel(divided_up(tokens, per_chunk), threads, [&](int64_t chunk) {
      const int64_t end = smaller(tokens, (chunk + 1) * per_chunk);
      for (int64_t n = chunk * per_chunk; n < end; ++n) {
        const int64_t b = n / length;
        const int64_t l = n % length;
        const float* cos = floats(a.cos) + l * pairs;
        const float* sin = floats(a.sin) + l * pairs;
        Turn turn;
        prepare<T>(q_scale, cos, sin, pairs, turn);
        token_forward<T>(a.q, a.q_out, b, l, turn, a.eps);
        prepare<T>(k_scale, cos, sin, pairs, turn);
        token_forward<T>(a.k, a.k_out, b, l, turn, a.eps);
      }
    });
  });
}

void qk_norm_rope_backward(const QkNormRopeBackward& a, int threads) {
  const int64_t length = a.q.size[1];
  const int64_t pairs = a.q.size[3] / 2;
  const int64_t tokens = a.q.size[0] * length;
  const int64_t room = 2 * whole_pairs(pairs);
  // One sum over the tokens of all samples.
  TokenChunks chunks(tokens);
  chunks.length = kTokensPerChunk;
  chunks.count = divided_up(tokens, kTokensPerChunk);
  float* q_scale = scratch(std::size_t((2 + 2 + 2 * chunks.count) * room));
  float* k_scale = q_scale + room;
  float* sums = k_scale + room;
  float* partials = sums + 2 * room;
  const Side q = {&a.grad_q_out, &a.q, &a.grad_q, q_scale};
  const Side k = {&a.grad_k_out, &a.k, &a.grad_k, k_scale};
  with_type(a.q.dtype, [&](auto type) {
    using T = decltype(type);
    read_scale<T>(a.q_scale, q_scale);
    read_scale<T>(a.k_scale, k_scale);
    sum_over_tokens(1, chunks, 2 * room, threads, partials, sums,
                    [&](int64_t, int64_t first, int64_t last, float* partial) {
                      for (int64_t n = first; n < last; ++n) {
                        const int64_t b = n / length;
                        const int64_t l = n % length;
                        const float* cos = floats(a.cos) + l * pairs;
                        const float* sin = floats(a.sin) + l * pairs;
                        token_backward<T>(q, b, l, cos, sin, a.eps, partial);
                        token_backward<T>(k, b, l, cos, sin, a.eps, partial + room);
                      }
                    });
    write_scale<T>(sums, a.grad_q_scale);
    write_scale<T>(sums + room, a.grad_k_scale);
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
