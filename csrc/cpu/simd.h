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
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

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

// ---- storage to float ----

VIDGEN_INLINE Floats load(const float* at) {
  Floats value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

VIDGEN_INLINE Floats load(const BFloat16* at) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256((const __m256i*)at);
  return (Floats)_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, bits), 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128((const __m128i*)at);
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  Halves bits;
  std::memcpy(&bits, at, sizeof bits);
  return bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
#endif
}

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

VIDGEN_INLINE Floats load(const Float16* at) {
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

// ---- float to storage, to the nearest, ties to even ----

VIDGEN_INLINE void store(float* at, Floats value) { std::memcpy(at, &value, sizeof value); }

// The upper half of every word, rounded; a NaN stays a NaN.
VIDGEN_INLINE Words rounded_to_bfloat16(Floats value) {
  const Words bits = bit_cast<Words>(value);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words quiet_nan = (bits >> 16) | 0x40;
  const Words is_nan = bit_cast<Words>(value != value);
  return (quiet_nan & is_nan) | (rounded & ~is_nan);
}

VIDGEN_INLINE void store(BFloat16* at, Floats value) {
#if defined(__AVX512BF16__)
  // The instruction takes denormals for zero, so they go the long way.
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)value, 0x20) == 0, 1)) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(at, &narrow, sizeof narrow);
    return;
  }
#endif
  const Words wide = rounded_to_bfloat16(value);
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)at, _mm512_maskz_cvtepi32_epi16(kAll, (__m512i)wide));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)wide, (__m256i)wide);
  _mm_storeu_si128((__m128i*)at, _mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
  const Halves narrow = __builtin_convertvector(wide, Halves);
  std::memcpy(at, &narrow, sizeof narrow);
#endif
}

VIDGEN_INLINE void store(Float16* at, Floats value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)at, _mm512_maskz_cvtps_ph(kAll, (__m512)value, kNearest));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)at, _mm256_cvtps_ph((__m256)value, kNearest));
#else
  for (int lane = 0; lane < kLanes; ++lane) at[lane] = to_float16(value[lane]);
#endif
}

// ---- arithmetic ----

VIDGEN_INLINE float sum(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// e^x for x <= 0, to about one unit in the last place; NaN for NaN.
VIDGEN_INLINE Floats exp_of_negative(Floats x) {
  const Floats low = fill(-87.33654f);  // e^x is a denormal below, taken for 0
  const Floats inside = x < low ? low : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding and taking away 1.5 * 2^23 rounds to the nearest n.
  const Floats magic = fill(12582912.0f);
  const Floats shifted = inside * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints whole = bit_cast<Ints>(shifted) - bit_cast<Ints>(magic);
  const Floats result = p * bit_cast<Floats>((whole + 127) << 23);
  const Floats bounded = x < low ? Floats{} : result;
  return x != x ? x : bounded;
}

// ---- loops over a row ----

// A whole vector of a row, starting at element i.
struct Whole {
  int64_t i;
  template <class T>
  VIDGEN_INLINE Floats load(const T* row) const {
    return VIDGEN_ISA::load(row + i);
  }
  template <class T>
  VIDGEN_INLINE void store(T* row, Floats value) const {
    VIDGEN_ISA::store(row + i, value);
  }
  // The lanes that are elements of the row; the others 0.
  VIDGEN_INLINE Floats keep(Floats value) const { return value; }
};

// The last, shorter vector of a row: absent lanes load as 0 and are not stored.
struct Part {
  int64_t i;
  int64_t count;
  template <class T>
  VIDGEN_INLINE Floats load(const T* row) const {
    T lanes[kLanes] = {};
    std::memcpy(lanes, row + i, std::size_t(count) * sizeof(T));
    return VIDGEN_ISA::load(lanes);
  }
  template <class T>
  VIDGEN_INLINE void store(T* row, Floats value) const {
    T lanes[kLanes];
    VIDGEN_ISA::store(lanes, value);
    std::memcpy(row + i, lanes, std::size_t(count) * sizeof(T));
  }
  VIDGEN_INLINE Floats keep(Floats value) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane >= count) value[lane] = 0.0f;
    }
    return value;
  }
};

// Independent partial sums, so that one addition need not wait for the one before.
constexpr int kSums = 4;

struct Sums {
  Floats part[kSums] = {};
  VIDGEN_INLINE float total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

// body(at, s) for every vector of a row of `width` elements; s says which partial sum is free.
template <class Body>
VIDGEN_INLINE void over(int64_t width, Body&& body) {
  int64_t i = 0;
  for (; i + kSums * kLanes <= width; i += kSums * kLanes) {
    body(Whole{i}, 0);
    body(Whole{i + kLanes}, 1);
    body(Whole{i + 2 * kLanes}, 2);
    body(Whole{i + 3 * kLanes}, 3);
  }
  for (; i + kLanes <= width; i += kLanes) body(Whole{i}, 0);
  if (i < width) body(Part{i, width - i}, 0);
}

}  // namespace vidgen::cpu::VIDGEN_ISA
