// CRC-32C (Castagnoli), the checksum of checkpoint shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vidgen {

// The checksum of `bytes` appended to data whose checksum is `seed` (0 for none).
uint32_t crc32c(const void* data, std::size_t bytes, uint32_t seed = 0);

// Copies and returns the checksum, in one pass over memory; the stores bypass the cache.
uint32_t copy_crc32c(void* to, const void* from, std::size_t bytes);

struct Crc32cVariant {
  const char* name;
  uint32_t (*checksum)(const unsigned char* at, std::size_t bytes, uint32_t seed);
  // `to` is on a cache line.
  uint32_t (*copy)(unsigned char* to, const unsigned char* at, std::size_t bytes, uint32_t seed);
};

// The variants this CPU runs, the fastest first: that is the one used. The last one, by table
// lookup, runs on any CPU.
const std::vector<Crc32cVariant>& crc32c_variants();

}  // namespace vidgen
