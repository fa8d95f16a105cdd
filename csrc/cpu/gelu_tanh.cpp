#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

constexpr float kSlope = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// (1 + tanh(u)) / 2 = 1 / (1 + t) with t = e^(-2u). bfloat16 keeps 8 bits of a result, so 11 do
// there for t and the reciprocal.
template <class T>
constexpr bool kCoarse = false;
template <>
constexpr bool kCoarse<BFloat16> = true;

// The power of 2 that t is.
VIDGEN_INLINE Floats exponent(Floats x) {
  constexpr float kScale = -2.0f * kSlope * 1.44269504f;
  return x * (x * x * (kScale * kCubic) + kScale);
}

// Of -infinity t is infinity and the result NaN, as torch's.
template <class T>
VIDGEN_INLINE Floats gelu(Floats x) {
  const Floats t = exp2<kCoarse<T>>(at_most(128.0f, at_least(-126.0f, exponent(x))));
  if constexpr (kCoarse<T>) return x * reciprocal_coarse(1.0f + t);
  return x / (1.0f + t);
}

template <class T>
VIDGEN_INLINE Floats gelu_derivative(Floats x) {
  // Beyond 10 it is 0 or 1 and t in range.
  const Floats inside = at_most(10.0f, at_least(-10.0f, x));
  const Floats t = exp2<kCoarse<T>>(exponent(inside));
  const Floats divisor = 1.0f + t;
  Floats logistic;
  if constexpr (kCoarse<T>) {
    logistic = reciprocal_coarse(divisor);
    logistic = logistic * (2.0f - divisor * logistic);  // the terms below may cancel: more digits
  } else {
    logistic = 1.0f / divisor;
  }
  const Floats twice_du = (2.0f * kSlope * 3.0f * kCubic) * inside * inside + 2.0f * kSlope;
  const Floats not_finite = x - x;  // NaN of an infinity, else 0
  return logistic + inside * twice_du * (t * logistic * logistic) + not_finite;
}

}  // namespace

void gelu_tanh_forward(const GeluTanhForward& a, int threads) {
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* from = row<const T>(a.x, b, l);
      T* to = row<T>(a.out, b, l);
      over<T>(a.x.size[2], [&](auto at, int) VIDGEN_LAMBDA {
        const Pair x = at.load(from);
        at.store_approximate(to, {gelu<T>(x.a), gelu<T>(x.b)});
      });
    });
  });
}

void gelu_tanh_backward(const GeluTanhBackward& a, int threads) {
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* from = row<const T>(a.x, b, l);
      const T* grad = row<const T>(a.grad_out, b, l);
      T* to = row<T>(a.grad_x, b, l);
      over<T>(a.x.size[2], [&](auto at, int) VIDGEN_LAMBDA {
        const Pair x = at.load(from);
        at.store_approximate(
            to, at.load(grad) * Pair{gelu_derivative<T>(x.a), gelu_derivative<T>(x.b)});
      });
    });
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
