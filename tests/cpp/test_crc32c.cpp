// Every variant of the checksum that this CPU runs, with and without a copy.
#include <algorithm>

#include "check.h"
#include "host/crc32c.h"

namespace vidgen::test {

void test_crc32c() {
  std::mt19937 random(2);
  std::vector<unsigned char> data(300'003);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random());
  const Crc32cVariant& portable = crc32c_variants().back();
  for (const Crc32cVariant& variant : crc32c_variants()) {
    const std::string name = std::string("crc32c by ") + variant.name;
    const unsigned char* string = reinterpret_cast<const unsigned char*>("123456789");
    expect(variant.checksum(string, 9, 0) == 0xe3069283u, name + " of the check string");
    std::vector<unsigned char> copy(data.size() + 128);
    unsigned char* to = copy.data() + -reinterpret_cast<uintptr_t>(copy.data()) % 64;
    for (std::size_t bytes :
         {0u, 1u, 7u, 255u, 256u, 511u, 512u, 4095u, 12288u, 12289u, 262'144u, 300'000u}) {
      const std::string what = name + " of " + std::to_string(bytes) + " bytes";
      const uint32_t expected = portable.checksum(data.data() + 3, bytes, 5);
      expect(variant.checksum(data.data() + 3, bytes, 5) == expected, what);
      std::fill(copy.begin(), copy.end(), 0);
      expect(variant.copy(to, data.data() + 3, bytes, 5) == expected, what + ", copied");
      expect(std::memcmp(to, data.data() + 3, bytes) == 0 && to[bytes] == 0,
             what + ": the copy, and nothing behind it");
    }
  }
  std::vector<unsigned char> copy(data.size());
  for (std::size_t shift : {0u, 1u, 63u, 64u}) {
    for (std::size_t bytes : {0u, 5u, 70'000u}) {
      const std::string what = std::to_string(bytes) + " bytes to " + std::to_string(shift);
      std::fill(copy.begin(), copy.end(), 0);
      const uint32_t found = copy_crc32c(copy.data() + shift, data.data(), bytes);
      expect(found == portable.checksum(data.data(), bytes, 0), "crc32c of " + what);
      expect(std::memcmp(copy.data() + shift, data.data(), bytes) == 0, "a copy of " + what);
    }
  }
}

}  // namespace vidgen::test
