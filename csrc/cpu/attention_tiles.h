// Shared by attention's passes: packing, small matrix products in registers, powers of two.
//
// A product C += A B takes B as panels: kPanel columns of each row in turn. A is read element by
// element, so it may be row-major or column-major. D is zero-padded to whole panels.
//
// Everything is float. If the CPU has bfloat16 pair products and the tensors are bfloat16, A and B
// hold pairs instead: two neighbours along the depth in place of one float, so that a product is
// half as deep and everything else is unchanged.
#pragma once

#include "cpu/tokens.h"
#include "cpu/vectors.h"
#include "vidgen/attention.h"

namespace vidgen::cpu::VIDGEN_ISA {

// Rows x columns of C that fit in registers together with one row of B.
constexpr int kPanel = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// Between rows of a matrix that is read column by column: rows a power of two apart share cache
// sets.
constexpr int64_t kSkew = 16;

VIDGEN_INLINE int64_t whole_panels(int64_t columns) { return divided_up(columns, kPanel) * kPanel; }

VIDGEN_INLINE Floats spread(float value) {
#if defined(__AVX512F__)
  return (Floats)_mm512_set1_ps(value);
#elif defined(__AVX2__)
  return (Floats)_mm256_set1_ps(value);
#else
  return Floats{value, value, value, value};
#endif
}

// Memory of one job, cut into arrays that start on cache lines.
class Carver {
 public:
  VIDGEN_INLINE float* take(int64_t floats) {
    float* start = base_ == nullptr ? nullptr : base_ + used_;
    used_ += divided_up(floats, 16) * 16;
    return start;
  }
  VIDGEN_INLINE explicit Carver(float* base) : base_(base) {}
  VIDGEN_INLINE std::size_t used() const { return std::size_t(used_); }

 private:
  float* base_;
  int64_t used_ = 0;
};

// ---- products ----

// VIDGEN_EMULATE_BF16 lets tests run the pair code on a CPU without such products.
#if defined(__AVX512BF16__) || defined(VIDGEN_EMULATE_BF16)
constexpr bool kPairProducts = true;
#else
constexpr bool kPairProducts = false;
#endif

template <class T>
constexpr bool kInPairs = false;
template <>
constexpr bool kInPairs<BFloat16> = kPairProducts;

// Numbers of storage in the place of one float.
template <bool kPairs>
VIDGEN_INLINE int64_t deep(int64_t depth) {
  return kPairs ? (depth + 1) / 2 : depth;
}

template <bool kPairs>
VIDGEN_INLINE Floats multiply_add(Floats sum, Floats a, Floats b) {
  if constexpr (!kPairs) {
    return sum + a * b;
  } else {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const Words x = bit_cast<Words>(a), y = bit_cast<Words>(b);
    const Floats first = bit_cast<Floats>(x << 16) * bit_cast<Floats>(y << 16);
    return sum + first + bit_cast<Floats>(x & 0xffff0000u) * bit_cast<Floats>(y & 0xffff0000u);
#endif
  }
}

enum class Into { kSet, kAdd, kScaledAdd };

// A row after row (`step` numbers apart), or column after column.
enum class Order { kRows, kColumns };

// kRows x kPanel of C: C = A B, C += A B, or C = factor * C + A B with one factor a row.
template <bool kPairs, int kRows, Order kOrder, Into kInto>
VIDGEN_INLINE void tile(const float* a, int64_t a_stride, const float* b, int64_t depth, float* c,
                        int64_t c_stride, const float* factor) {
  Floats sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Floats{};
  for (int64_t k = 0; k < depth; ++k) {
    const Floats b0 = load_one(b), b1 = load_one(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Floats x = spread(kOrder == Order::kRows ? a[r * a_stride] : a[r]);
      sum[r][0] = multiply_add<kPairs>(sum[r][0], x, b0);
      sum[r][1] = multiply_add<kPairs>(sum[r][1], x, b1);
    }
    a += kOrder == Order::kRows ? 1 : a_stride;
    b += kPanel;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* at = c + r * c_stride;
    if constexpr (kInto == Into::kAdd) {
      sum[r][0] += load_one(at);
      sum[r][1] += load_one(at + kLanes);
    } else if constexpr (kInto == Into::kScaledAdd) {
      const Floats f = spread(factor[r]);
      sum[r][0] += f * load_one(at);
      sum[r][1] += f * load_one(at + kLanes);
    }
    store_one(at, sum[r][0]);
    store_one(at + kLanes, sum[r][1]);
  }
}

// The rows that are left over after whole tiles.
template <bool kPairs, int kRows, Order kOrder, Into kInto>
VIDGEN_INLINE void tail_tile(int64_t rows, const float* a, int64_t a_stride, const float* b,
                             int64_t depth, float* c, int64_t c_stride, const float* factor) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      tile<kPairs, kRows, kOrder, kInto>(a, a_stride, b, depth, c, c_stride, factor);
    } else {
      tail_tile<kPairs, kRows - 1, kOrder, kInto>(rows, a, a_stride, b, depth, c, c_stride, factor);
    }
  }
}

// C (rows x columns) from A (rows x depth) and B (depth x columns) in panels `b_panel` apart, where
// depth counts floats or pairs.
template <bool kPairs, Order kOrder, Into kInto>
void product(const float* a, int64_t a_stride, const float* b, int64_t b_panel, int64_t rows,
             int64_t columns, int64_t depth, float* c, int64_t c_stride,
             const float* factor = nullptr) {
  const int64_t a_step = kOrder == Order::kRows ? a_stride : 1;
  const auto factors = [&](int64_t r)
                           VIDGEN_LAMBDA { return factor == nullptr ? nullptr : factor + r; };
  for (int64_t column = 0; column < columns; column += kPanel) {
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
      tile<kPairs, kTileRows, kOrder, kInto>(a + r * a_step, a_stride, b, depth,
                                             c + r * c_stride + column, c_stride, factors(r));
    }
    if (r < rows) {
      tail_tile<kPairs, kTileRows - 1, kOrder, kInto>(rows - r, a + r * a_step, a_stride, b, depth,
                                                      c + r * c_stride + column, c_stride,
                                                      factors(r));
    }
    b += b_panel;
  }
}

// ---- packing ----

// One row of `width` numbers as float, times `factor`, zeros up to `padded`.
template <class T>
VIDGEN_INLINE void widen_row(const T* from, int64_t width, int64_t padded, float factor,
                             float* to) {
  const Floats f = spread(factor);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store_one(to + i, load_one(from + i) * f);
  if (i < width) {
    store_one(to + i, PartVector{i, width - i}.load(from) * f);
    i += kLanes;
  }
  for (; i < padded; i += kLanes) store_one(to + i, Floats{});
}

// `rows` rows of one head as bfloat16, zeros up to `padded`; `stride` in floats.
template <class T>
VIDGEN_INLINE void narrow(const TensorView& x, int64_t b, int64_t h, int64_t first, int64_t rows,
                          float* to, int64_t stride) {
  const int64_t width = x.size[3], padded = whole_panels(width);
  for (int64_t l = 0; l < rows; ++l) {
    const T* from = row<const T>(x, b, first + l, h);
    BFloat16* at = reinterpret_cast<BFloat16*>(to + l * stride);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store_one(at + i, load_one(from + i));
    if (i < width) {
      store_one(at + i, PartVector{i, width - i}.load(from));
      i += kLanes;
    }
    for (; i < padded; i += kLanes) store_one(at + i, Floats{});
  }
}

// `rows` rows of one head, as float, times `factor`.
template <class T>
VIDGEN_INLINE void widen(const TensorView& x, int64_t b, int64_t h, int64_t first, int64_t rows,
                         float factor, float* to, int64_t stride) {
  const int64_t padded = whole_panels(x.size[3]);
  for (int64_t l = 0; l < rows; ++l) {
    widen_row(row<const T>(x, b, first + l, h), x.size[3], padded, factor, to + l * stride);
  }
}

// B = rows (rows x padded, `stride` apart): panels of kPanel features, `depth` rows in each, of
// which those from `rows` on are zeros.
inline void pack_rows(const float* from, int64_t stride, int64_t rows, int64_t depth,
                      int64_t padded, float* to) {
  for (int64_t d = 0; d < padded; d += kPanel) {
    for (int64_t l = 0; l < rows; ++l) {
      store_one(to + l * kPanel, load_one(from + l * stride + d));
      store_one(to + l * kPanel + kLanes, load_one(from + l * stride + d + kLanes));
    }
    for (int64_t l = rows * kPanel; l < depth * kPanel; ++l) to[l] = 0.0f;
    to += depth * kPanel;
  }
}

// The lower half of every word from `low`, the upper half from `high`, both rounded to bfloat16.
VIDGEN_INLINE Floats pair(Floats low, Floats high) {
  return bit_cast<Floats>(bfloat16_halves(low) | bfloat16_halves(high) << 16);
}

// B = rows of bfloat16, two of them at a time; there are `depth` rows, an even number.
inline void pack_row_pairs(const float* from, int64_t stride, int64_t depth, int64_t padded,
                           float* to) {
  for (int64_t d = 0; d < padded; d += kPanel) {
    for (int64_t l = 0; l < depth; l += 2) {
      const BFloat16* low = reinterpret_cast<const BFloat16*>(from + l * stride) + d;
      const BFloat16* high = reinterpret_cast<const BFloat16*>(from + (l + 1) * stride) + d;
      for (int64_t i = 0; i < kPanel; i += kLanes) {
        const Words both =
            bit_cast<Words>(load_one(low + i)) >> 16 | bit_cast<Words>(load_one(high + i));
        store_one(to + i, bit_cast<Floats>(both));
      }
      to += kPanel;
    }
  }
}

#if defined(__AVX2__)
VIDGEN_INLINE void transpose_8x8(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m256 x[8], y[8];
  for (int i = 0; i < 8; ++i) x[i] = _mm256_loadu_ps(from + i * stride);
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
    x[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
    x[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    x[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(x[i], x[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
  }
}
#endif

// B = rows transposed: panels of kPanel rows, `padded` features in each. `rows` is whole panels.
inline void pack_transposed(const float* from, int64_t stride, int64_t rows, int64_t padded,
                            float* to) {
  for (int64_t l = 0; l < rows; l += kPanel) {
#if defined(__AVX2__)
    for (int64_t part = 0; part < kPanel; part += 8) {
      for (int64_t d = 0; d < padded; d += 8) {
        transpose_8x8(from + (l + part) * stride + d, stride, to + d * kPanel + part, kPanel);
      }
    }
#else
    for (int64_t d = 0; d < padded; ++d) {
      for (int64_t i = 0; i < kPanel; ++i) to[d * kPanel + i] = from[(l + i) * stride + d];
    }
#endif
    to += padded * kPanel;
  }
}

// ---- arithmetic ----

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
constexpr float kInfinity = __builtin_inff();

// 2^x for x <= 126, to about one unit in the last place; below 2^-126.5 zero, NaN for NaN.
VIDGEN_INLINE Floats exp2_of(Floats x) {
  const Floats low = spread(-127.0f);
  const Floats inside = x < low ? low : x;
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
  const Floats magic = spread(12582912.0f);
  const Floats shifted = inside + magic;
  const Floats r = inside - (shifted - magic);
  Floats p = spread(1.32647273e-3f);
  p = p * r + spread(9.67151299e-3f);
  p = p * r + spread(5.55073358e-2f);
  p = p * r + spread(0.240222424f);
  p = p * r + spread(0.693147004f);
  p = p * r + spread(1.0f);
  // The whole part moves into the exponent; at -127 that is zero itself.
  const Ints whole = bit_cast<Ints>(shifted) - bit_cast<Ints>(magic);
  return p * bit_cast<Floats>((whole + 127) << 23);
}

VIDGEN_INLINE float largest(Floats value) {
  float lanes[kLanes];
  store_one(lanes, value);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      if (lanes[lane + half] > lanes[lane]) lanes[lane] = lanes[lane + half];
    }
  }
  return lanes[0];
}

}  // namespace vidgen::cpu::VIDGEN_ISA
