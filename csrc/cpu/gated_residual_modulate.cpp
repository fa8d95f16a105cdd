#include "cpu/layer_norm.h"

namespace vidgen::cpu::VIDGEN_ISA {

void gated_residual_modulate_forward(const GatedResidualModulateForward& a, int threads) {
  const int64_t length = a.x.size[1];
  const int64_t width = a.x.size[2];
  const int64_t room = whole_pairs(width);
  const int64_t vectors = a.x.size[0] * room;
  float* gate = scratch(std::size_t(3 * vectors));
  float* shift = gate + vectors;
  float* one_plus_scale = shift + vectors;
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.gate, 0.0f, gate);
    read_vectors<T>(a.shift, 0.0f, shift);
    read_vectors<T>(a.scale, 1.0f, one_plus_scale);
    for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
      const T* x = row<const T>(a.x, b, l);
      const T* y = row<const T>(a.y, b, l);
      T* residual = row<T>(a.residual, b, l);
      const float* factor = gate + b * room;
      over<T>(width, [&](auto at, int) VIDGEN_LAMBDA {
        at.store(residual, at.load(x) + at.beside(factor) * at.load(y));
      });
      // Normalise the residual as stored (rounded), which is what the backward pass reads.
      const RowStatistics statistics = row_statistics<T>(residual, width, a.eps);
      floats(a.mean)[b * length + l] = statistics.mean;
      floats(a.rstd)[b * length + l] = statistics.rstd;
      modulate_row<T>(residual, statistics, shift + b * room, one_plus_scale + b * room, width,
                      row<T>(a.out, b, l));
    });
  });
}

namespace {

struct Sums3 {
  float* gate;
  float* shift;
  float* scale;
};

template <class T, int kTokens>
VIDGEN_INLINE void block_backward(const GatedResidualModulateBackward& a, int64_t b, int64_t first,
                                  const float* gate, const float* one_plus_scale, Sums3 sums) {
  const int64_t length = a.residual.size[1];
  const int64_t width = a.residual.size[2];
  const T* grads[kTokens];
  const T* residual_grads[kTokens];
  const T* rows[kTokens];
  const T* ys[kTokens];
  T* x_outs[kTokens];
  T* y_outs[kTokens];
  RowStatistics statistics[kTokens];
  RowMeans means[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    const int64_t l = first + t;
    grads[t] = row<const T>(a.grad_out, b, l);
    residual_grads[t] = row<const T>(a.grad_residual, b, l);
    rows[t] = row<const T>(a.residual, b, l);
    ys[t] = row<const T>(a.y, b, l);
    x_outs[t] = row<T>(a.grad_x, b, l);
    y_outs[t] = row<T>(a.grad_y, b, l);
    statistics[t] = {floats(a.mean)[b * length + l], floats(a.rstd)[b * length + l]};
    means[t] = row_means(grads[t], rows[t], statistics[t], one_plus_scale, width);
  }
  over<T>(width, [&](auto at, int) VIDGEN_LAMBDA {
    const Pair factor = at.beside(one_plus_scale);
    const Pair gate_factor = at.beside(gate);
    Pair gate_sum = at.beside(sums.gate);
    Pair shift_sum = at.beside(sums.shift);
    Pair scale_sum = at.beside(sums.scale);
    for (int t = 0; t < kTokens; ++t) {
      const Pair grad = at.load(grads[t]);
      const Pair normal = (at.load(rows[t]) - statistics[t].mean) * statistics[t].rstd;
      shift_sum = shift_sum + grad;
      scale_sum = scale_sum + grad * normal;
      const Pair centred = grad * factor - means[t].w - normal * means[t].w_normal;
      const Pair total = centred * statistics[t].rstd + at.load(residual_grads[t]);
      gate_sum = gate_sum + total * at.load(ys[t]);
      at.store(x_outs[t], total);
      at.store(y_outs[t], total * gate_factor);
    }
    at.put_beside(sums.gate, gate_sum);
    at.put_beside(sums.shift, shift_sum);
    at.put_beside(sums.scale, scale_sum);
  });
}

}  // namespace

void gated_residual_modulate_backward(const GatedResidualModulateBackward& a, int threads) {
  const int64_t samples = a.residual.size[0];
  const int64_t width = a.residual.size[2];
  const int64_t room = whole_pairs(width);
  const TokenChunks chunks(a.residual.size[1]);
  float* gate = scratch(std::size_t(samples * (2 + 3 + 3 * chunks.count) * room));
  float* one_plus_scale = gate + samples * room;
  float* sums = one_plus_scale + samples * room;
  float* partials = sums + samples * 3 * room;
  with_type(a.residual.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.gate, 0.0f, gate);
    read_vectors<T>(a.scale, 1.0f, one_plus_scale);
    sum_over_tokens(samples, chunks, 3 * room, threads, partials, sums,
                    [&](int64_t b, int64_t first, int64_t last, float* partial) {
                      const Sums3 own = {partial, partial + room, partial + 2 * room};
                      const float* gate_row = gate + b * room;
                      const float* factor = one_plus_scale + b * room;
                      for (; first < last; ++first) {
                        block_backward<T, 1>(a, b, first, gate_row, factor, own);
                      }
                    });
    const TensorView* results[] = {&a.grad_gate, &a.grad_shift, &a.grad_scale};
    for (int64_t b = 0; b < samples; ++b) {
      for (int i = 0; i < 3; ++i) {
        write_vector<T>(sums + (b * 3 + i) * room, width, floats(*results[i]) + b * width);
      }
    }
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
