#include "cpu/tokens.h"
#include "cpu/vectors.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

VIDGEN_INLINE Words fill_words(uint32_t value) { return Words{} + value; }

// 0, 1, 2, ...
VIDGEN_INLINE Words lane_numbers() {
  Words lanes = {};
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = uint32_t(lane);
  return lanes;
}

// 32 random bits for each element: one half for each moment.
VIDGEN_INLINE Words random_bits(const AdamwPlace& place, Words element) {
  Words x = element ^ fill_words(place.key[0]);
  x ^= x >> 16;
  x *= fill_words(0x7feb352du);
  x += fill_words(place.key[1]);
  x ^= x >> 15;
  x *= fill_words(0x846ca68bu);
  return x ^ (x >> 16);
}

// Up where the random bits carry into the upper half. `random` is below 2^16.
template <class At>
VIDGEN_INLINE void store_randomly(At at, BFloat16* row, Floats value, Words random) {
  const Words bits = bit_cast<Words>(value);
  const Words is_nan = bit_cast<Words>(value != value);
  const Words wide = (((bits >> 16) | 0x40) & is_nan) | (((bits + random) >> 16) & ~is_nan);
  at.store_words(row, wide);
}

template <class At>
VIDGEN_INLINE void store_randomly(At at, float* row, Floats value, Words) {
  at.store(row, value);
}

template <class T>
void step(const AdamwForward& a, int threads) {
  AdamwNumbers n;
  AdamwPlace place;
  std::memcpy(&n, a.settings.data, sizeof n);
  std::memcpy(&place, a.place.data, sizeof place);
  const bool averaged = a.average.data != nullptr;
  const Words lanes = lane_numbers();
  for_tokens(a.param, threads, [&](int64_t b, int64_t l) {
    float* param = row<float>(a.param, b, l);
    const float* grad = row<const float>(a.grad, b, l);
    T* first = row<T>(a.exp_avg, b, l);
    T* second = row<T>(a.exp_avg_sq, b, l);
    float* average = averaged ? row<float>(a.average, b, l) : nullptr;
    const uint32_t begin = place.first + uint32_t(l) * place.row;
    over_vectors(a.param.size[2], [&](auto at, int) VIDGEN_LAMBDA {
      const Floats g = at.load(grad);
      Floats m = at.load(first);
      Floats v = at.load(second);
      m = m + n.rate1 * (g - m);
      v = n.beta2 * v + n.rate2 * (g * g);
      const Floats p = n.keep * at.load(param) - n.step_size * m / (root(v) * n.root + n.eps);
      const Words random = random_bits(place, lanes + (begin + uint32_t(at.i)));
      store_randomly(at, first, m, random & 0xffffu);
      store_randomly(at, second, v, random >> 16);
      at.store(param, p);
      if (averaged) {
        const Floats old = at.load(average);
        at.store(average, old + n.follow * (p - old));
      }
    });
  });
}

}  // namespace

void adamw_forward(const AdamwForward& a, int threads) {
  if (a.exp_avg.dtype == DType::f32) {
    step<float>(a, threads);
  } else {
    step<BFloat16>(a, threads);
  }
}

}  // namespace vidgen::cpu::VIDGEN_ISA
