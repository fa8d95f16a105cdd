#include "cpu/layer_norm.h"

namespace vidgen::cpu::VIDGEN_ISA {

void modulate_forward(const ModulateForward& a, int threads) {
  const int64_t length = a.x.size[1];
  const int64_t width = a.x.size[2];
  const int64_t room = whole_pairs(width);
  float* shift = scratch(std::size_t(2 * a.x.size[0] * room));
  float* one_plus_scale = shift + a.x.size[0] * room;
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.shift, 0.0f, shift);
    read_vectors<T>(a.scale, 1.0f, one_plus_scale);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* x = row<const T>(a.x, b, l);
      const RowStatistics statistics = row_statistics(x, width, a.eps);
      floats(a.mean)[b * length + l] = statistics.mean;
      floats(a.rstd)[b * length + l] = statistics.rstd;
      modulate_row(x, statistics, shift + b * room, one_plus_scale + b * room, width,
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
  over<T>(width, [&](auto at, int) VIDGEN_LAMBDA {
    const Pair factor = at.beside(one_plus_scale);
    Pair shift_sum = at.beside(grad_shift);
    Pair scale_sum = at.beside(grad_scale);
    for (int t = 0; t < kTokens; ++t) {
      const Pair grad = at.load(grads[t]);
      const Pair normal = (at.load(rows[t]) - statistics[t].mean) * statistics[t].rstd;
      shift_sum = shift_sum + grad;
      scale_sum = scale_sum + grad * normal;
      const Pair centred = grad * factor - means[t].w - normal * means[t].w_normal;
      at.store(outs[t], centred * statistics[t].rstd);
    }
    at.put_beside(grad_shift, shift_sum);
    at.put_beside(grad_scale, scale_sum);
  });
}

}  // namespace

void modulate_backward(const ModulateBackward& a, int threads) {
  const int64_t samples = a.x.size[0];
  const int64_t width = a.x.size[2];
  const int64_t room = whole_pairs(width);
  const TokenChunks chunks(a.x.size[1]);
  float* one_plus_scale = scratch(std::size_t(samples * (1 + 2 + 2 * chunks.count) * room));
  float* sums = one_plus_scale + samples * room;
  float* partials = sums + samples * 2 * room;
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.scale, 1.0f, one_plus_scale);
    sum_over_tokens(samples, chunks, 2 * room, threads, partials, sums,
                    [&](int64_t b, int64_t first, int64_t last, float* partial) {
                      const float* factor = one_plus_scale + b * room;
                      for (; first + kBlock <= last; first += kBlock) {
                        block_backward<T, kBlock>(a, b, first, factor, partial, partial + room);
                      }
                      for (; first < last; ++first) {
                        block_backward<T, 1>(a, b, first, factor, partial, partial + room);
                      }
                    });
    for (int64_t b = 0; b < samples; ++b) {
      const float* of_sample = sums + b * 2 * room;
      write_vector<T>(of_sample, width, floats(a.grad_shift) + b * width);
      write_vector<T>(of_sample + room, width, floats(a.grad_scale) + b * width);
    }
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
