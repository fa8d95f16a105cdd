// Vectors of float for the instruction set this file is compiled for.
//
// Everything here and in the kernels is inlined or private to namespace VIDGEN_ISA: a function the
// linker could share between variants would run AVX-512 code on a CPU without it. For the same
// reason the kernels include nothing from the C++ library that is a template.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef VIDGEN_ISA
#error "compile with -DVIDGEN_ISA=<name of the variant>"
#endif

#define VIDGEN_INLINE inline __attribute__((always_inline))
#define VIDGEN_LAMBDA __attribute__((always_inline))

namespace vidgen::cpu::VIDGEN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));

#if defined(__AVX2__)
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
#endif
#if defined(__AVX512F__)
// Some compilers warn about the forms without a mask, whose other operand is undefined.
constexpr __mmask16 kAll = 0xffff;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

VIDGEN_INLINE Floats fill(float value) { return Floats{} + value; }

template <class To, class From>
VIDGEN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- storage to float and back, two vectors at a time ----
//
// A Pair is 2 * kLanes neighbours of a row. Of float and Float16 `a` has the first half of them. Of
// BFloat16 `a` has those at even places and `b` those at odd: each is then one shift or mask away
// from the other's word, and nothing crosses lanes. Numbers that meet a row lane by lane (scales,
// sums over tokens) are kept in the row's order, see arranged() and restored().

struct Pair {
  Floats a, b;
};

VIDGEN_INLINE Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
VIDGEN_INLINE Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }
VIDGEN_INLINE Pair operator*(Pair x, Pair y) { return {x.a * y.a, x.b * y.b}; }
VIDGEN_INLINE Pair operator+(Pair x, float y) { return {x.a + y, x.b + y}; }
VIDGEN_INLINE Pair operator-(Pair x, float y) { return {x.a - y, x.b - y}; }
VIDGEN_INLINE Pair operator*(Pair x, float y) { return {x.a * y, x.b * y}; }

template <class Vector>
VIDGEN_INLINE Vector load_vector(const void* at) {
  Vector value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

VIDGEN_INLINE Pair load(const float* at) {
  return {load_vector<Floats>(at), load_vector<Floats>(at + kLanes)};
}

VIDGEN_INLINE void store(float* at, Pair value) { std::memcpy(at, &value, sizeof value); }

VIDGEN_INLINE Pair load(const BFloat16* at) {
  const Words both = load_vector<Words>(at);
  return {bit_cast<Floats>(both << 16), bit_cast<Floats>(both & 0xffff0000u)};
}

// To nearest, ties to even. A NaN whose lower half is 0 stays a NaN; NaNs from bfloat16 values, and
// from floats that went through `clean`, have that form.
VIDGEN_INLINE Words rounded_to_bfloat16(Floats value) {
  const Words bits = bit_cast<Words>(value);
  return bits + (((bits >> 16) & 1) + 0x7fff);
}

// The upper halves of the words, joined.
VIDGEN_INLINE void store_upper(BFloat16* at, Words a, Words b) {
  const Words even = a >> 16;
#if defined(__AVX2__) && !defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)at, _mm256_blend_epi16((__m256i)even, (__m256i)b, 0xaa));
#else
  const Words both = even | (b & 0xffff0000u);
  std::memcpy(at, &both, sizeof both);
#endif
}

VIDGEN_INLINE void store(BFloat16* at, Pair value) {
  store_upper(at, rounded_to_bfloat16(value.a), rounded_to_bfloat16(value.b));
}

// For approximations: ties, which are irrelevant there, round away from 0.
VIDGEN_INLINE void store_approximate(BFloat16* at, Pair value) {
  store_upper(at, bit_cast<Words>(value.a) + 0x8000u, bit_cast<Words>(value.b) + 0x8000u);
}

VIDGEN_INLINE Floats clean(Floats value) {
  const Floats nan = bit_cast<Floats>(Words{} + 0x7fc00000u);
  return value == value ? value : nan;
}

VIDGEN_INLINE Pair cleaned(Pair value) { return {clean(value.a), clean(value.b)}; }

#if !defined(__AVX2__)
VIDGEN_INLINE float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1f;
  const uint32_t fraction = value.bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = float(fraction) * 0x1p-24f;
    return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return bit_cast<float>(sign | biased << 23 | fraction << 13);
}

VIDGEN_INLINE Float16 to_float16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and up round to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 0.5 lets the float adder round at 2^-24, the last place of a denormal.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return {uint16_t(sign | ((rounded >> 13) - (112 << 10)))};
}
#endif

VIDGEN_INLINE Floats load_half(const Float16* at) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256((const __m256i*)at));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at));
#else
  Floats value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(at[lane]);
  return value;
#endif
}

VIDGEN_INLINE void store_half(Float16* at, Floats value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)at, _mm512_maskz_cvtps_ph(kAll, (__m512)value, kNearest));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)at, _mm256_cvtps_ph((__m256)value, kNearest));
#else
  for (int lane = 0; lane < kLanes; ++lane) at[lane] = to_float16(value[lane]);
#endif
}

VIDGEN_INLINE Pair load(const Float16* at) { return {load_half(at), load_half(at + kLanes)}; }

VIDGEN_INLINE void store(Float16* at, Pair value) {
  store_half(at, value.a);
  store_half(at + kLanes, value.b);
}

template <class T>
VIDGEN_INLINE void store_approximate(T* at, Pair value) {
  store(at, value);
}

#if defined(__AVX512F__)
#define VIDGEN_EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define VIDGEN_ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define VIDGEN_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define VIDGEN_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define VIDGEN_EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define VIDGEN_ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define VIDGEN_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define VIDGEN_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define VIDGEN_EVENS 0, 2, 4, 6
#define VIDGEN_ODDS 1, 3, 5, 7
#define VIDGEN_LOW 0, 4, 1, 5
#define VIDGEN_HIGH 2, 6, 3, 7
#endif

// Neighbours in a row of float, in the order rows of T have; and back.
template <class T>
VIDGEN_INLINE Pair arranged(Pair x) {
  return x;
}
template <>
VIDGEN_INLINE Pair arranged<BFloat16>(Pair x) {
  return {__builtin_shufflevector(x.a, x.b, VIDGEN_EVENS),
          __builtin_shufflevector(x.a, x.b, VIDGEN_ODDS)};
}
template <class T>
VIDGEN_INLINE Pair restored(Pair x) {
  return x;
}
template <>
VIDGEN_INLINE Pair restored<BFloat16>(Pair x) {
  return {__builtin_shufflevector(x.a, x.b, VIDGEN_LOW),
          __builtin_shufflevector(x.a, x.b, VIDGEN_HIGH)};
}

// ---- arithmetic ----

VIDGEN_INLINE float sum(Floats value) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight = (__m256)__builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
                       (__m256)__builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const __m256 eight = (__m256)value;
#endif
  const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(two + _mm_movehdup_ps(two));
#else
  return (value[0] + value[2]) + (value[1] + value[3]);
#endif
}

// The larger and the smaller of a bound and a number; NaN where the number is.
VIDGEN_INLINE Floats at_least(float bound, Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(kAll, (__m512)fill(bound), (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)fill(bound), (__m256)x);
#else
  return x < bound ? fill(bound) : x;
#endif
}

VIDGEN_INLINE Floats at_most(float bound, Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_min_ps(kAll, (__m512)fill(bound), (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)fill(bound), (__m256)x);
#else
  return x > bound ? fill(bound) : x;
#endif
}

VIDGEN_INLINE Pair at_least(float bound, Pair x) {
  return {at_least(bound, x.a), at_least(bound, x.b)};
}

VIDGEN_INLINE Pair at_most(float bound, Pair x) {
  return {at_most(bound, x.a), at_most(bound, x.b)};
}

// x times two to the power of the integer in the last bits of `shifted`; its other bits are
// dropped.
VIDGEN_INLINE Floats scaled(Floats x, Floats shifted) {
  return bit_cast<Floats>(bit_cast<Ints>(x) + (bit_cast<Ints>(shifted) << 23));
}

// 2^x of x from -126 to 128, where it is infinity; to 24 bits, or to 13 where that is enough.
template <bool kCoarse>
VIDGEN_INLINE Pair exp2(Pair x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Pair shifted = x + magic;
  const Pair r = x - (shifted - magic);
  Pair p;
  if constexpr (kCoarse) {
    p = r * 0.055008888f + 0.242210990f;
    p = p * r + 0.693282935f;
  } else {
    p = r * 1.53533617e-4f + 1.33988758e-3f;
    p = p * r + 9.61843737e-3f;
    p = p * r + 5.55033247e-2f;
    p = p * r + 2.40226479e-1f;
    p = p * r + 6.93147203e-1f;
  }
  p = p * r + 1.0f;
  return {scaled(p.a, shifted.a), scaled(p.b, shifted.b)};
}

VIDGEN_INLINE Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_sqrt_ps(kAll, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

VIDGEN_INLINE Pair reciprocal(Pair x) { return {1.0f / x.a, 1.0f / x.b}; }

// To 11 bits at least.
VIDGEN_INLINE Floats reciprocal_coarse(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_rcp14_ps(kAll, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_rcp_ps((__m256)x);
#else
  return 1.0f / x;
#endif
}

VIDGEN_INLINE Pair reciprocal_coarse(Pair x) {
  return {reciprocal_coarse(x.a), reciprocal_coarse(x.b)};
}

// ---- loops over a row ----

constexpr int kPair = 2 * kLanes;

// A whole pair of a row of T, starting at element i. Numbers kept beside rows, in their order and
// filled up to whole pairs, are read and written by `beside` and `put_beside`; rows of float that
// are in their own order by `plain` and `put_plain`.
template <class T>
struct Whole {
  int64_t i;
  VIDGEN_INLINE Pair load(const T* row) const { return VIDGEN_ISA::load(row + i); }
  VIDGEN_INLINE void store(T* row, Pair value) const { VIDGEN_ISA::store(row + i, value); }
  VIDGEN_INLINE void store_approximate(T* row, Pair value) const {
    VIDGEN_ISA::store_approximate(row + i, value);
  }
  VIDGEN_INLINE Pair beside(const float* row) const { return VIDGEN_ISA::load(row + i); }
  VIDGEN_INLINE void put_beside(float* row, Pair value) const { VIDGEN_ISA::store(row + i, value); }
  VIDGEN_INLINE Pair plain(const float* row) const {
    return arranged<T>(VIDGEN_ISA::load(row + i));
  }
  VIDGEN_INLINE void put_plain(float* row, Pair value) const {
    VIDGEN_ISA::store(row + i, restored<T>(value));
  }
  // What is of the row; the rest 0.
  VIDGEN_INLINE Pair keep(Pair value) const { return value; }
};

// The last, shorter pair of a row: what is absent loads as 0 and is not stored.
template <class T>
struct Part {
  int64_t i;
  int64_t count;
  VIDGEN_INLINE Pair load(const T* row) const {
    T lanes[kPair] = {};
    std::memcpy(lanes, row + i, std::size_t(count) * sizeof(T));
    return VIDGEN_ISA::load(lanes);
  }
  VIDGEN_INLINE void store(T* row, Pair value) const {
    T lanes[kPair];
    VIDGEN_ISA::store(lanes, value);
    std::memcpy(row + i, lanes, std::size_t(count) * sizeof(T));
  }
  VIDGEN_INLINE void store_approximate(T* row, Pair value) const { store(row, value); }
  VIDGEN_INLINE Pair beside(const float* row) const { return VIDGEN_ISA::load(row + i); }
  VIDGEN_INLINE void put_beside(float* row, Pair value) const { VIDGEN_ISA::store(row + i, value); }
  VIDGEN_INLINE Pair plain(const float* row) const {
    float lanes[kPair] = {};
    std::memcpy(lanes, row + i, std::size_t(count) * sizeof(float));
    return arranged<T>(VIDGEN_ISA::load(lanes));
  }
  VIDGEN_INLINE void put_plain(float* row, Pair value) const {
    float lanes[kPair];
    VIDGEN_ISA::store(lanes, restored<T>(value));
    std::memcpy(row + i, lanes, std::size_t(count) * sizeof(float));
  }
  VIDGEN_INLINE Pair keep(Pair value) const {
    float lanes[kPair];
    VIDGEN_ISA::store(lanes, restored<T>(value));
    for (int lane = 0; lane < kPair; ++lane) {
      if (lane >= count) lanes[lane] = 0.0f;
    }
    return arranged<T>(VIDGEN_ISA::load(lanes));
  }
};

// Independent partial sums, so that one addition need not wait for the one before.
struct Sums {
  Pair part[2] = {};
  VIDGEN_INLINE float total() const {
    return sum((part[0].a + part[1].a) + (part[0].b + part[1].b));
  }
};

// body(at, s) for every pair of a row of T; s says which partial sum is free.
template <class T, class Body>
VIDGEN_INLINE void over(int64_t width, Body&& body) {
  int64_t i = 0;
  for (; i + 2 * kPair <= width; i += 2 * kPair) {
    body(Whole<T>{i}, 0);
    body(Whole<T>{i + kPair}, 1);
  }
  if (i + kPair <= width) {
    body(Whole<T>{i}, 0);
    i += kPair;
  }
  if (i < width) body(Part<T>{i, width - i}, 0);
}

}  // namespace vidgen::cpu::VIDGEN_ISA
