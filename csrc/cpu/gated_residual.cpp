#include "cpu/stream.h"
#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {

namespace {

template <class T, bool kStreamed>
VIDGEN_INLINE void forward(const GatedResidualForward& a, const float* gate, int threads) {
  const int64_t width = a.x.size[2];
  const int64_t room = whole_pairs(width);
  for_tokens(a.x, threads, [&](int64_t b, int64_t l) {
    const T* x = row<const T>(a.x, b, l);
    const T* y = row<const T>(a.y, b, l);
    T* out = row<T>(a.out, b, l);
    const float* factor = gate + b * room;
    over<T>(width, [&](auto at, int) VIDGEN_LAMBDA {
      const Pair sum = at.load(x) + at.beside(factor) * at.load(y);
      if constexpr (kStreamed) {
        store_streamed(at, out, sum);
      } else {
        at.store(out, sum);
      }
    });
    if constexpr (kStreamed) end_stream();
  });
}

}  // namespace

void gated_residual_forward(const GatedResidualForward& a, int threads) {
  float* gate = scratch(std::size_t(a.x.size[0] * whole_pairs(a.x.size[2])));
  with_type(a.x.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.gate, 0.0f, gate);
    if (is_streamed(a.out)) {
      forward<T, true>(a, gate, threads);
    } else {
      forward<T, false>(a, gate, threads);
    }
  });
}

namespace {

template <class T, int kTokens>
VIDGEN_INLINE void block_backward(const GatedResidualBackward& a, int64_t b, int64_t first,
                                  const float* gate, float* grad_gate) {
  const T* grads[kTokens];
  const T* ys[kTokens];
  T* outs[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    grads[t] = row<const T>(a.grad_out, b, first + t);
    ys[t] = row<const T>(a.y, b, first + t);
    outs[t] = row<T>(a.grad_y, b, first + t);
  }
  over<T>(a.y.size[2], [&](auto at, int) VIDGEN_LAMBDA {
    const Pair factor = at.beside(gate);
    Pair gate_sum = at.beside(grad_gate);
    for (int t = 0; t < kTokens; ++t) {
      const Pair grad = at.load(grads[t]);
      gate_sum = gate_sum + grad * at.load(ys[t]);
      at.store(outs[t], grad * factor);
    }
    at.put_beside(grad_gate, gate_sum);
  });
}

}  // namespace

void gated_residual_backward(const GatedResidualBackward& a, int threads) {
  const int64_t samples = a.y.size[0];
  const int64_t width = a.y.size[2];
  const int64_t room = whole_pairs(width);
  const TokenChunks chunks(a.y.size[1]);
  float* gate = scratch(std::size_t(samples * (1 + 1 + chunks.count) * room));
  float* sums = gate + samples * room;
  float* partials = sums + samples * room;
  with_type(a.y.dtype, [&](auto type) {
    using T = decltype(type);
    read_vectors<T>(a.gate, 0.0f, gate);
    sum_over_tokens(samples, chunks, room, threads, partials, sums,
                    [&](int64_t b, int64_t first, int64_t last, float* partial) {
                      const float* factor = gate + b * room;
                      for (; first + kBlock <= last; first += kBlock) {
                        block_backward<T, kBlock>(a, b, first, factor, partial);
                      }
                      for (; first < last; ++first) {
                        block_backward<T, 1>(a, b, first, factor, partial);
                      }
                    });
    for (int64_t b = 0; b < samples; ++b) {
      write_vector<T>(sums + b * room, width, floats(a.grad_gate) + b * width);
    }
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
