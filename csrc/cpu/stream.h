// Stores past the caches, for results too large to stay in them: an ordinary store first reads the
// line that it overwrites, which of out = f(x) is a third of all the memory traffic.
#pragma once

#include "cpu/simd.h"
#include "vidgen/tensor_view.h"

namespace vidgen::cpu::VIDGEN_ISA {

constexpr int64_t kCacheLine = 64;
// Below this the next kernel finds the result in a cache.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// Whether stores to `out` may be streamed: it is large and each of its rows starts a cache line.
inline bool is_streamed(const TensorView& out) {
#if defined(__AVX512F__)
  const int64_t item = bytes_of(out.dtype);
  bool aligned = reinterpret_cast<std::uintptr_t>(out.data) % kCacheLine == 0;
  for (int i = 0; i < out.dims - 1; ++i) aligned &= out.stride[i] * item % kCacheLine == 0;
  return aligned && out.elements() * item >= kStreamedBytes;
#else
  (void)out;
  return false;
#endif
}

#if defined(__AVX512F__)
VIDGEN_INLINE void stream(float* at, Pair value) {
  _mm512_stream_ps(at, (__m512)value.a);
  _mm512_stream_ps(at + kLanes, (__m512)value.b);
}

VIDGEN_INLINE void stream(BFloat16* at, Pair value) {
  BFloat16 lanes[kPair];
  store(lanes, value);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(at), load_vector<__m512i>(lanes));
}

VIDGEN_INLINE void stream(Float16* at, Pair value) {
  Float16 lanes[kPair];
  store(lanes, value);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(at), load_vector<__m512i>(lanes));
}
#endif

// A pair of a row whose start is aligned; the last, shorter one is stored as usual.
template <class T>
VIDGEN_INLINE void store_streamed(Whole<T> at, T* row, Pair value) {
#if defined(__AVX512F__)
  stream(row + at.i, value);
#else
  at.store(row, value);
#endif
}

template <class T>
VIDGEN_INLINE void store_streamed(Part<T> at, T* row, Pair value) {
  at.store(row, value);
}

// After the last streamed store of a thread: other threads see all of them.
VIDGEN_INLINE void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace vidgen::cpu::VIDGEN_ISA
