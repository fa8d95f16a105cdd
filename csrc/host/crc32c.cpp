#include "host/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>

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

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const unsigned char* at, std::size_t bytes,
                                                        uint32_t seed) {
  uint64_t crc = ~seed;
  while (bytes >= 3 * kStream) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (std::size_t i = 0; i < kStream; i += 8) {
      crc = _mm_crc32_u64(crc, word(at + i));
      second = _mm_crc32_u64(second, word(at + kStream + i));
      third = _mm_crc32_u64(third, word(at + 2 * kStream + i));
    }
    crc = skip_stream(static_cast<uint32_t>(crc)) ^ second;
    crc = skip_stream(static_cast<uint32_t>(crc)) ^ third;
    at += 3 * kStream;
    bytes -= 3 * kStream;
  }
  for (; bytes >= 8; at += 8, bytes -= 8) crc = _mm_crc32_u64(crc, word(at));
  uint32_t tail = static_cast<uint32_t>(crc);
  for (; bytes > 0; ++at, --bytes) tail = _mm_crc32_u8(tail, *at);
  return ~tail;
}

#endif

}  // namespace

uint32_t crc32c_portable(const void* data, std::size_t bytes, uint32_t seed) {
  const auto* at = static_cast<const unsigned char*>(data);
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

uint32_t crc32c(const void* data, std::size_t bytes, uint32_t seed) {
#if defined(__x86_64__)
  if (cpu_features().sse42) {
    return crc32c_sse42(static_cast<const unsigned char*>(data), bytes, seed);
  }
#endif
  return crc32c_portable(data, bytes, seed);
}

}  // namespace vidgen
