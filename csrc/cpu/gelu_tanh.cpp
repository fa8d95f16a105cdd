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
VIDGEN_INLINE Pair exponent(Pair x) {
  constexpr float kScale = -2.0f * kSlope * 1.44269504f;
  return x * (x * x * (kScale * kCubic) + kScale);
}

template <class T>
VIDGEN_INLINE Pair reciprocal_for(Pair x) {
  if constexpr (kCoarse<T>) return reciprocal_coarse(x);
  return reciprocal(x);
}

// Of -infinity t is infinity and the result NaN, as torch's.
template <class T>
VIDGEN_INLINE Pair gelu(Pair x) {
  const Pair t = exp2<kCoarse<T>>(at_most(128.0f, at_least(-126.0f, exponent(x))));
  return x * reciprocal_for<T>(t + 1.0f);
}

template <class T>
VIDGEN_INLINE Pair gelu_derivative(Pair x) {
  // Beyond 10 it is 0 or 1 and t in range.
  const Pair inside = at_most(10.0f, at_least(-10.0f, x));
  const Pair t = exp2<kCoarse<T>>(exponent(inside));
  const Pair logistic = reciprocal_for<T>(t + 1.0f);
  const Pair twice_du = inside * inside * (2.0f * kSlope * 3.0f * kCubic) + 2.0f * kSlope;
  const Pair not_finite = x - x;  // NaN of an infinity, else 0
  return inside * twice_du * (t * logistic * logistic) + logistic + not_finite;
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
        at.store_approximate(to, gelu<T>(x));
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
        at.store_approximate(to, at.load(grad) * gelu_derivative<T>(x));
      });
    });
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
