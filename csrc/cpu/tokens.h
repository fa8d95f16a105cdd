// Shared by the kernels over token tensors: rows, vectors as float, chunks, sums over tokens.
#pragma once

#include "cpu/simd.h"
#include "host/parallel.h"
#include "vidgen/ops.h"

namespace vidgen::cpu::VIDGEN_ISA {

VIDGEN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VIDGEN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
VIDGEN_INLINE int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
VIDGEN_INLINE T* row(const TensorView& view, int64_t b, int64_t l) {
  return static_cast<T*>(view.data) + b * view.stride[0] + l * view.stride[1];
}

template <class T>
VIDGEN_INLINE T* row(const TensorView& view, int64_t b, int64_t l, int64_t h) {
  return row<T>(view, b, l) + h * view.stride[2];
}

VIDGEN_INLINE float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

// body(T{}) with T the storage type of `dtype`.
template <class Body>
VIDGEN_INLINE void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(BFloat16{});
    case DType::f16:
      return body(Float16{});
    case DType::u8:
    case DType::i32:
      return;
  }
}

// A width filled up to whole pairs: the room of numbers kept beside rows.
VIDGEN_INLINE int64_t whole_pairs(int64_t width) { return divided_up(width, kPair) * kPair; }

// values[i] = vector[i] + addend, to be kept beside rows of T
template <class T>
VIDGEN_INLINE void read_vector(const void* vector, DType dtype, int64_t width, float addend,
                               float* values) {
  with_type(dtype, [&](auto type) VIDGEN_LAMBDA {
    using From = decltype(type);
    const auto* from = static_cast<const From*>(vector);
    over<From>(width, [&](auto at, int) VIDGEN_LAMBDA {
      const Pair plain = restored<From>(at.load(from) + addend);
      VIDGEN_ISA::store(values + at.i, arranged<T>(cleaned(plain)));
    });
  });
}

// The rows of a (B, D) tensor, each filled up to whole pairs, plus addend.
template <class T>
VIDGEN_INLINE void read_vectors(const TensorView& view, float addend, float* values) {
  const int64_t width = view.size[1];
  for (int64_t b = 0; b < view.size[0]; ++b) {
    const int64_t offset = b * view.stride[0] * bytes_of(view.dtype);
    read_vector<T>(static_cast<const char*>(view.data) + offset, view.dtype, width, addend,
                   values + b * whole_pairs(width));
  }
}

// A sum kept beside rows of T, as a row of float.
template <class T>
VIDGEN_INLINE void write_vector(const float* values, int64_t width, float* out) {
  over<T>(width, [&](auto at, int) VIDGEN_LAMBDA { at.put_plain(out, at.beside(values)); });
}

template <class Body>
void call_chunk(void* body, int64_t chunk) {
  (*static_cast<Body*>(body))(chunk);
}

// body(c) for c in [0, chunks) on at most `threads` threads.
template <class Body>
VIDGEN_INLINE void in_parallel(int64_t chunks, int threads, Body&& body) {
  parallel_chunks(chunks, threads, call_chunk<Body>, &body);
}

// Rows per chunk: worth handing to a thread, and where there are many rows enough of them in a row
// for the processor to see where memory will be read next.
VIDGEN_INLINE int64_t rows_per_chunk(int64_t tokens, int64_t width, int threads) {
  return larger(larger(1, 16384 / larger(1, width)), tokens / (16 * int64_t{threads}));
}

// body(b, l) for every token of a (B, L, D) tensor, in parallel.
template <class Body>
VIDGEN_INLINE void for_tokens(const TensorView& x, int threads, Body&& body) {
  const int64_t tokens = x.size[0] * x.size[1];
  const int64_t per_chunk = rows_per_chunk(tokens, x.size[2], threads);
  in_parallel(divided_up(tokens, per_chunk), threads, [&](int64_t chunk) {
    const int64_t end = smaller(tokens, (chunk + 1) * per_chunk);
    for (int64_t n = chunk * per_chunk; n < end; ++n) body(n / x.size[1], n % x.size[1]);
  });
}

// How the tokens of one sample are split for sums over tokens: a function of L only, so that the
// sums do not depend on the number of threads.
struct TokenChunks {
  int64_t tokens;  // of a sample
  int64_t length;  // tokens of a chunk
  int64_t count;   // chunks of a sample

  explicit TokenChunks(int64_t sample_tokens)
      : tokens(sample_tokens),
        length(smaller(128, larger(16, divided_up(sample_tokens, 64)))),
        count(divided_up(sample_tokens, length)) {}
};

// Tokens whose contributions are added up in registers before they go to memory. More would be more
// rows at once than a set of the first cache has ways: their distance is often a power of two.
constexpr int kBlock = 2;

// body(b, first, last, partial) for every chunk of tokens [first, last) of every sample; `partial`
// is that chunk's own `width` floats, zero at first. Then result[b * width + i] is the sum over the
// chunks of sample b, in order, in double.
template <class Body>
VIDGEN_INLINE void sum_over_tokens(int64_t samples, const TokenChunks& chunks, int64_t width,
                                   int threads, float* partials, float* result, Body&& body) {
  in_parallel(samples * chunks.count, threads, [&](int64_t chunk) {
    float* partial = partials + chunk * width;
    std::memset(partial, 0, std::size_t(width) * sizeof(float));
    const int64_t first = chunk % chunks.count * chunks.length;
    body(chunk / chunks.count, first, smaller(chunks.tokens, first + chunks.length), partial);
  });
  constexpr int64_t kColumns = 256;
  const int64_t blocks = divided_up(width, kColumns);
  const int adders = samples * chunks.count * width < 32768 ? 1 : threads;
  in_parallel(samples * blocks, adders, [&](int64_t block) {
    const int64_t b = block / blocks;
    const int64_t begin = block % blocks * kColumns;
    const int64_t columns = smaller(kColumns, width - begin);
    double total[kColumns] = {};
    for (int64_t chunk = b * chunks.count; chunk < (b + 1) * chunks.count; ++chunk) {
      const float* partial = partials + chunk * width + begin;
      for (int64_t i = 0; i < columns; ++i) total[i] += double(partial[i]);
    }
    for (int64_t i = 0; i < columns; ++i) result[b * width + begin + i] = float(total[i]);
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
