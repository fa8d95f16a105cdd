#include "cpu/layer_norm.h"

namespace vidgen::cpu::VIDGEN_ISA {

void modulate_forward(const ModulateForward& a, int threads) {
  const int64_t length = a.x.size[1];
  const int64_t width = a.x.size[2];
  const int64_t vectors = a.x.size[0] * width;
  float* shift = scratch(std::size_t(2 * vectors));
  float* one_plus_scale = shift + vectors;
  read_vectors(a.shift, 0.0f, shift);
  read_vectors(a.scale, 1.0f, one_plus_scale);
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* x = row<const T>(a.x, b, l);
      const RowStatistics statistics = row_statistics(x, width, a.eps);
      floats(a.mean)[b * length + l] = statistics.mean;
      floats(a.rstd)[b * length + l] = statistics.rstd;
      modulate_row(x, statistics, shift + b * width, one_plus_scale + b * width, width,
                   row<T>(a.out, b, l));
    });
  });
}

namespace {

// Tokens [first, first + kTokens) of sample b: grad_x, and what they add to the sums over tokens.
template <class T, int kTokens>
VIDGEN_INLINE void block_backward(const ModulateBackward& a, int64_t b, int64_t first,
                                  const float* one_plus_scale, float* grad_shift,
                                  float* grad_scale) {
  const int64_t width = a.x.size[2];
  const T* grads[kTokens];
  const T* rows[kTokens];
  T* outs[kTokens];
  RowStatistics statistics[kTokens];
  RowMeans means[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    const int64_t l = first + t;
    grads[t] = row<const T>(a.grad_out, b, l);
    rows[t] = row<const T>(a.x, b, l);
    outs[t] = row<T>(a.grad_x, b, l);
    statistics[t] = {floats(a.mean)[b * a.x.size[1] + l], floats(a.rstd)[b * a.x.size[1] + l]};
    means[t] = row_means(grads[t], rows[t], statistics[t], one_plus_scale, width);
  }
  over(width, [&](auto at, int) VIDGEN_LAMBDA {
    const Floats factor = at.load(one_plus_scale);
    Floats shift_sum = {};
    Floats scale_sum = {};
    for (int t = 0; t < kTokens; ++t) {
      const Floats grad = at.load(grads[t]);
      const Floats normal = (at.load(rows[t]) - statistics[t].mean) * statistics[t].rstd;
      shift_sum += grad;
      scale_sum += grad * normal;
      const Floats centred = grad * factor - means[t].w - normal * means[t].w_normal;
      at.store(outs[t], centred * statistics[t].rstd);
    }
    at.store(grad_shift, at.load(grad_shift) + shift_sum);
    at.store(grad_scale, at.load(grad_scale) + scale_sum);
  });
}

}  // namespace

void modulate_backward(const ModulateBackward& a, int threads) {
  const int64_t samples = a.x.size[0];
  const int64_t width = a.x.size[2];
  const TokenChunks chunks(a.x.size[1]);
  float* one_plus_scale =
      scratch(std::size_t((samples + samples * 2 + samples * chunks.count * 2) * width));
  float* sums = one_plus_scale + samples * width;
  float* partials = sums + samples * 2 * width;
  read_vectors(a.scale, 1.0f, one_plus_scale);
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    sum_over_tokens(samples, chunks, 2 * width, threads, partials, sums,
                    [&](int64_t b, int64_t first, int64_t last, float* partial) {
                      const float* factor = one_plus_scale + b * width;
                      for (; first + kBlock <= last; first += kBlock) {
                        block_backward<T, kBlock>(a, b, first, factor, partial, partial + width);
                      }
                      for (; first < last; ++first) {
                        block_backward<T, 1>(a, b, first, factor, partial, partial + width);
                      }
                    });
  });
  for (int64_t b = 0; b < samples; ++b) {
    const float* of_sample = sums + b * 2 * width;
    std::memcpy(floats(a.grad_shift) + b * width, of_sample, std::size_t(width) * sizeof(float));
    std::memcpy(floats(a.grad_scale) + b * width, of_sample + width,
                std::size_t(width) * sizeof(float));
  }
}

}  // namespace vidgen::cpu::VIDGEN_ISA
