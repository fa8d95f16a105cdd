// One vector of neighbours at a time, in the row's own order: what the tiles of attention are made
// of. The ops that go over whole rows take two at a time, see simd.h.
#pragma once

#include "cpu/simd.h"

namespace vidgen::cpu::VIDGEN_ISA {

typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

VIDGEN_INLINE Floats load_one(const float* at) { return load_vector<Floats>(at); }

VIDGEN_INLINE Floats load_one(const BFloat16* at) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256((const __m256i*)at);
  return (Floats)_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, bits), 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128((const __m128i*)at);
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  return bit_cast<Floats>(__builtin_convertvector(load_vector<Halves>(at), Words) << 16);
#endif
}

VIDGEN_INLINE Floats load_one(const Float16* at) { return load_half(at); }

VIDGEN_INLINE void store_one(float* at, Floats value) { std::memcpy(at, &value, sizeof value); }

// Rounded to bfloat16 in the lower half of every word; a NaN stays a NaN.
VIDGEN_INLINE Words bfloat16_halves(Floats value) {
  const Words quiet_nan = (bit_cast<Words>(value) >> 16) | 0x40;
  const Words is_nan = bit_cast<Words>(value != value);
  return (quiet_nan & is_nan) | ((rounded_to_bfloat16(value) >> 16) & ~is_nan);
}

// The lower halves of the words.
VIDGEN_INLINE void store_halves(BFloat16* at, Words wide) {
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

VIDGEN_INLINE void store_one(BFloat16* at, Floats value) {
#if defined(__AVX512BF16__)
  // The instruction flushes denormals to zero, so they take the slow path.
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)value, 0x20) == 0, 1)) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(at, &narrow, sizeof narrow);
    return;
  }
#endif
  store_halves(at, bfloat16_halves(value));
}

VIDGEN_INLINE void store_one(Float16* at, Floats value) { store_half(at, value); }

// A whole vector of a row, starting at element i.
struct WholeVector {
  int64_t i;
  template <class T>
  VIDGEN_INLINE Floats load(const T* row) const {
    return load_one(row + i);
  }
  template <class T>
  VIDGEN_INLINE void store(T* row, Floats value) const {
    store_one(row + i, value);
  }
  VIDGEN_INLINE void store_words(BFloat16* row, Words wide) const { store_halves(row + i, wide); }
};

// The last, shorter vector of a row: absent lanes load as 0 and are not stored.
struct PartVector {
  int64_t i;
  int64_t count;
  template <class T>
  VIDGEN_INLINE Floats load(const T* row) const {
    T lanes[kLanes] = {};
    std::memcpy(lanes, row + i, std::size_t(count) * sizeof(T));
    return load_one(lanes);
  }
  template <class T>
  VIDGEN_INLINE void store(T* row, Floats value) const {
    T lanes[kLanes];
    store_one(lanes, value);
    std::memcpy(row + i, lanes, std::size_t(count) * sizeof(T));
  }
  VIDGEN_INLINE void store_words(BFloat16* row, Words wide) const {
    BFloat16 lanes[kLanes];
    store_halves(lanes, wide);
    std::memcpy(row + i, lanes, std::size_t(count) * sizeof(BFloat16));
  }
};

// Independent partial sums, so that one addition need not wait for the one before.
struct VectorSums {
  Floats part[4] = {};
  VIDGEN_INLINE float total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

// body(at, s) for every vector of a row of `width` elements; s says which partial sum is free.
template <class Body>
VIDGEN_INLINE void over_vectors(int64_t width, Body&& body) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    body(WholeVector{i}, 0);
    body(WholeVector{i + kLanes}, 1);
    body(WholeVector{i + 2 * kLanes}, 2);
    body(WholeVector{i + 3 * kLanes}, 3);
  }
  for (; i + kLanes <= width; i += kLanes) body(WholeVector{i}, 0);
  if (i < width) body(PartVector{i, width - i}, 0);
}

}  // namespace vidgen::cpu::VIDGEN_ISA
