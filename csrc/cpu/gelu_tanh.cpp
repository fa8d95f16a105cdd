#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

constexpr float kSlope = 0.7978845608f;  // sqrt(2 / pi)
constexpr float kCubic = 0.044715f;

// (1 + tanh(u)) / 2 is the logistic function of 2u. With t = e^(-2|u|) neither it nor its
// complement loses digits or overflows.
struct Logistic {
  Floats value;
  Floats times_complement;
};

VIDGEN_INLINE Logistic logistic_of_2u(Floats x) {
  const Floats u = kSlope * (x + kCubic * x * x * x);
  const Floats t = exp_of_negative(u < 0.0f ? 2.0f * u : -2.0f * u);
  const Floats inverse = 1.0f / (1.0f + t);
  return {u < 0.0f ? t * inverse : inverse, t * inverse * inverse};
}

}  // namespace

void gelu_tanh_forward(const GeluTanhForward& a, int threads) {
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* from = row<const T>(a.x, b, l);
      T* to = row<T>(a.out, b, l);
      over(a.x.size[2], [&](auto at, int) VIDGEN_LAMBDA {
        const Floats x = at.load(from);
        at.store(to, x * logistic_of_2u(x).value);
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
      over(a.x.size[2], [&](auto at, int) VIDGEN_LAMBDA {
        const Floats x = at.load(from);
        const Logistic s = logistic_of_2u(x);
        const Floats twice_du = (2.0f * kSlope) * (1.0f + (3.0f * kCubic) * x * x);
        at.store(to, at.load(grad) * (s.value + x * s.times_complement * twice_du));
      });
    });
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
