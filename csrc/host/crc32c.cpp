#include "host/crc32c.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#include "host/cpu_features.h"
#endif

namespace vidgen {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// tables[k][b]: the effect of byte b followed by k zero bytes.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (std::size_t k = 1; k < 8; ++k) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

#if defined(__x86_64__)

// A linear map of 32-bit checksums: column i is the image of bit i.
using Matrix = std::array<uint32_t, 32>;

constexpr uint32_t apply(const Matrix& matrix, uint32_t vector) {
  uint32_t sum = 0;
  for (std::size_t i = 0; vector != 0; vector >>= 1, ++i) {
    if ((vector & 1) != 0) sum ^= matrix[i];
  }
  return sum;
}

constexpr Matrix square(const Matrix& matrix) {
  Matrix result{};
  for (std::size_t i = 0; i < 32; ++i) result[i] = apply(matrix, matrix[i]);
  return result;
}

// The checksum's change when 2^doublings zero bits follow.
constexpr Matrix zero_bits(int doublings) {
  Matrix matrix{};
  matrix[0] = kPolynomial;
  for (std::size_t i = 1; i < 32; ++i) matrix[i] = uint32_t{1} << (i - 1);
  for (int i = 0; i < doublings; ++i) matrix = square(matrix);
  return matrix;
}

// The instruction takes 3 cycles and one may start every cycle, so three streams run side by side.
constexpr std::size_t kStream = 4096;  // bytes of one stream: 2^15 bits
constexpr Matrix kSkipStream = zero_bits(15);

using SkipTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr SkipTable make_skip_table() {
  SkipTable table{};
  for (std::size_t byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) {
      table[byte][value] = apply(kSkipStream, value << (8 * byte));
    }
  }
  return table;
}

constexpr SkipTable kSkip = make_skip_table();

inline uint32_t skip_stream(uint32_t crc) {
  return kSkip[0][crc & 0xff] ^ kSkip[1][(crc >> 8) & 0xff] ^ kSkip[2][(crc >> 16) & 0xff] ^
         kSkip[3][crc >> 24];
}

inline uint64_t word(const unsigned char* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline void store_past_cache(unsigned char* to, uint64_t value) {
  _mm_stream_si64(reinterpret_cast<long long*>(to), static_cast<long long>(value));
}

template <bool kCopy>
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(unsigned char* to, const unsigned char* at,
                                                        std::size_t bytes, uint32_t seed) {
  uint64_t crc = ~seed;
  while (bytes >= 3 * kStream) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (std::size_t i = 0; i < kStream; i += 8) {
      const uint64_t words[] = {word(at + i), word(at + kStream + i), word(at + 2 * kStream + i)};
      if constexpr (kCopy) {
        store_past_cache(to + i, words[0]);
        store_past_cache(to + kStream + i, words[1]);
        store_past_cache(to + 2 * kStream + i, words[2]);
      }
      crc = _mm_crc32_u64(crc, words[0]);
      second = _mm_crc32_u64(second, words[1]);
      third = _mm_crc32_u64(third, words[2]);
    }
    crc = skip_stream(static_cast<uint32_t>(crc)) ^ second;
    crc = skip_stream(static_cast<uint32_t>(crc)) ^ third;
    at += 3 * kStream;
    bytes -= 3 * kStream;
    if constexpr (kCopy) to += 3 * kStream;
  }
  if constexpr (kCopy) {
    std::memcpy(to, at, bytes);
    _mm_sfence();
  }
  for (; bytes >= 8; at += 8, bytes -= 8) crc = _mm_crc32_u64(crc, word(at));
  uint32_t tail = static_cast<uint32_t>(crc);
  for (; bytes > 0; ++at, --bytes) tail = _mm_crc32_u8(tail, *at);
  return ~tail;
}

// ---- carry-less products of 512 bits ----

#define VIDGEN_VPCLMUL \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,vpclmulqdq,pclmul,sse4.2")))

// x^n modulo the polynomial, reflected: bit 31 is x^0.
constexpr uint32_t power_of_x(int n) {
  uint32_t value = uint32_t{1} << 31;
  for (int i = 0; i < n; ++i) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
  return value;
}

// To move 128 bits `distance` bits ahead is to multiply their halves by these powers. A product of
// two reflected words is one bit short, and the constant's 32 bits lie in the word's lower half:
// 33 less than the halves' own distances.
template <int distance>
constexpr long long kLow = power_of_x(distance + 64 - 33);
template <int distance>
constexpr long long kHigh = power_of_x(distance - 33);

constexpr int kXor3 = 0x96;  // the truth table of a ^ b ^ c

// The 128-bit lanes of `sum`, each moved ahead, added to those of `next`.
template <int distance>
VIDGEN_VPCLMUL inline __m512i fold(__m512i sum, __m512i next) {
  constexpr long long high = kHigh<distance>, low = kLow<distance>;
  const __m512i by = _mm512_set_epi64(high, low, high, low, high, low, high, low);
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, by, 0x00),
                                   _mm512_clmulepi64_epi128(sum, by, 0x11), next, kXor3);
}

VIDGEN_VPCLMUL inline __m128i fold_lane(__m128i sum, __m128i next) {
  const __m128i by = _mm_set_epi64x(kHigh<128>, kLow<128>);
  return _mm_ternarylogic_epi64(_mm_clmulepi64_si128(sum, by, 0x00),
                                _mm_clmulepi64_si128(sum, by, 0x11), next, kXor3);
}

constexpr int kSums = 4;  // side by side, since a product takes longer than the next may start
constexpr std::size_t kRow = kSums * sizeof(__m512i);
constexpr std::size_t kAhead = 2048;  // bytes to prefetch ahead of a copy

template <bool kCopy>
VIDGEN_VPCLMUL inline __m512i load(unsigned char* to, const unsigned char* at, int i) {
  const __m512i data = _mm512_loadu_si512(at + i * sizeof(__m512i));
  if constexpr (kCopy) {
    _mm_prefetch(reinterpret_cast<const char*>(at + i * sizeof(__m512i) + kAhead), _MM_HINT_T0);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i * sizeof(__m512i)), data);
  }
  return data;
}

template <bool kCopy>
VIDGEN_VPCLMUL uint32_t crc32c_vpclmul(unsigned char* to, const unsigned char* at,
                                       std::size_t bytes, uint32_t seed) {
  if (bytes < kRow) return crc32c_sse42<kCopy>(to, at, bytes, seed);
  __m512i sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = load<kCopy>(to, at, i);
  sums[0] =
      _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~seed))));
  std::size_t done = kRow;
  for (; done + kRow <= bytes; done += kRow) {
    for (int i = 0; i < kSums; ++i) {
      sums[i] = fold<8 * kRow>(sums[i], load<kCopy>(kCopy ? to + done : nullptr, at + done, i));
    }
  }
  __m512i sum = sums[0];
  for (int i = 1; i < kSums; ++i) sum = fold<512>(sum, sums[i]);
  alignas(sizeof sum) __m128i lanes[4];
  _mm512_store_si512(lanes, sum);
  __m128i lane = lanes[0];
  for (int i = 1; i < 4; ++i) lane = fold_lane(lane, lanes[i]);
  uint64_t crc = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_extract_epi64(lane, 0)));
  crc = _mm_crc32_u64(crc, static_cast<uint64_t>(_mm_extract_epi64(lane, 1)));
  return crc32c_sse42<kCopy>(kCopy ? to + done : nullptr, at + done, bytes - done,
                             ~static_cast<uint32_t>(crc));
}

#endif

template <bool kCopy>
uint32_t crc32c_portable(unsigned char* to, const unsigned char* at, std::size_t bytes,
                         uint32_t seed) {
  if constexpr (kCopy) std::memcpy(to, at, bytes);
  uint32_t crc = ~seed;
  for (; bytes >= 8; at += 8, bytes -= 8) {
    const uint32_t low =
        crc ^ (at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24);
    crc = kTables[7][low & 0xff] ^ kTables[6][(low >> 8) & 0xff] ^ kTables[5][(low >> 16) & 0xff] ^
          kTables[4][low >> 24] ^ kTables[3][at[4]] ^ kTables[2][at[5]] ^ kTables[1][at[6]] ^
          kTables[0][at[7]];
  }
  for (; bytes > 0; ++at, --bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ *at) & 0xff];
  return ~crc;
}

using Implementation = uint32_t (*)(unsigned char*, const unsigned char*, std::size_t, uint32_t);

template <Implementation implementation>
uint32_t without_copy(const unsigned char* at, std::size_t bytes, uint32_t seed) {
  return implementation(nullptr, at, bytes, seed);
}

std::vector<Crc32cVariant> make_variants() {
  std::vector<Crc32cVariant> list;
#if defined(__x86_64__)
  const CpuFeatures& cpu = cpu_features();
  if (cpu.sse42 && cpu.avx512 && cpu.vpclmul) {
    list.push_back({"vpclmul", without_copy<crc32c_vpclmul<false>>, crc32c_vpclmul<true>});
  }
  if (cpu.sse42) list.push_back({"sse4.2", without_copy<crc32c_sse42<false>>, crc32c_sse42<true>});
#endif
  list.push_back({"portable", without_copy<crc32c_portable<false>>, crc32c_portable<true>});
  return list;
}

constexpr std::size_t kCacheLine = 64;

}  // namespace

const std::vector<Crc32cVariant>& crc32c_variants() {
  static const std::vector<Crc32cVariant> list = make_variants();
  return list;
}

uint32_t crc32c(const void* data, std::size_t bytes, uint32_t seed) {
  return crc32c_variants().front().checksum(static_cast<const unsigned char*>(data), bytes, seed);
}

uint32_t copy_crc32c(void* to, const void* from, std::size_t bytes) {
  const Crc32cVariant& variant = crc32c_variants().front();
  auto* out = static_cast<unsigned char*>(to);
  const auto* at = static_cast<const unsigned char*>(from);
  const std::size_t head =
      std::min<std::size_t>(-reinterpret_cast<uintptr_t>(to) % kCacheLine, bytes);
  std::memcpy(out, at, head);
  return variant.copy(out + head, at + head, bytes - head, variant.checksum(at, head, 0));
}

}  // namespace vidgen
