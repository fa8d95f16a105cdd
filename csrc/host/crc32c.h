// CRC-32C (Castagnoli), the checksum of checkpoint shards.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vidgen {

// The checksum of `bytes` appended to data whose checksum is `seed` (0 for none).
uint32_t crc32c(const void* data, std::size_t bytes, uint32_t seed = 0);

// The same by table lookup, on any CPU.
uint32_t crc32c_portable(const void* data, std::size_t bytes, uint32_t seed = 0);

}  // namespace vidgen
