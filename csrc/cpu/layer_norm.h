// Layer norm of one row, shared by the two kernels that modulate.
#pragma once

#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {

struct RowStatistics {
  float mean;
  float rstd;
};

// Two passes: a sum of squares would lose the variance of a row with a large mean.
template <class T>
VIDGEN_INLINE RowStatistics row_statistics(const T* x, int64_t width, float eps) {
  Sums sums;
  over<T>(width, [&](auto at, int s) VIDGEN_LAMBDA { sums.part[s] = sums.part[s] + at.load(x); });
  const float mean = sums.total() / float(width);
  Sums squares;
  over<T>(width, [&](auto at, int s) VIDGEN_LAMBDA {
    const Pair centred = at.keep(at.load(x) - mean);
    squares.part[s] = squares.part[s] + centred * centred;
  });
  return {mean, 1.0f / __builtin_sqrtf(squares.total() / float(width) + eps)};
}

template <class T>
VIDGEN_INLINE void modulate_row(const T* x, RowStatistics row, const float* shift,
                                const float* one_plus_scale, int64_t width, T* out) {
  over<T>(width, [&](auto at, int) VIDGEN_LAMBDA {
    const Pair normal = (at.load(x) - row.mean) * row.rstd;
    at.store(out, normal * at.beside(one_plus_scale) + at.beside(shift));
  });
}

// The two means of a row that its gradient needs: of w and of w * normal, w = grad * (1 + scale).
struct RowMeans {
  float w;
  float w_normal;
};

template <class T>
VIDGEN_INLINE RowMeans row_means(const T* grad, const T* x, RowStatistics row,
                                 const float* one_plus_scale, int64_t width) {
  Sums first;
  Sums second;
  over<T>(width, [&](auto at, int s) VIDGEN_LAMBDA {
    const Pair w = at.load(grad) * at.beside(one_plus_scale);
    first.part[s] = first.part[s] + w;
    second.part[s] = second.part[s] + w * (at.load(x) - row.mean);
  });
  return {first.total() / float(width), second.total() * row.rstd / float(width)};
}

}  // namespace vidgen::cpu::VIDGEN_ISA
