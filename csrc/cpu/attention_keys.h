// The keys that a block of queries attends to.
#pragma once

#include "cpu/attention_tiles.h"

namespace vidgen::cpu::VIDGEN_ISA {

VIDGEN_INLINE int64_t keys_of_sample(const TensorView& key_lengths, int64_t b, int64_t keys) {
  if (key_lengths.dims == 0) return keys;
  return larger(0, smaller(keys, static_cast<const int32_t*>(key_lengths.data)[b]));
}

// Keys that follow one another, counted from the first of a group of mask blocks.
struct Run {
  int64_t first, count;
};

// Of a group of at most kMost * kMaskKeys keys, those that one block of queries sees.
struct Runs {
  static constexpr int64_t kMost = 8;
  Run list[kMost];
  int count = 0;
  int64_t keys = 0;  // in all

  // The group starts at `first_key`, a multiple of kMaskKeys, and has `group` keys.
  VIDGEN_INLINE Runs(const TensorView& blocks, int64_t b, int64_t h, int64_t query,
                     int64_t first_key, int64_t group)
      : keys(0) {
    if (blocks.dims == 0) {
      list[count++] = {0, group};
      keys = group;
      return;
    }
    const int64_t columns = blocks.size[3];
    const int64_t sample = blocks.size[0] == 1 ? 0 : b;
    const int64_t head = blocks.size[1] == 1 ? 0 : h;
    const int64_t line = (sample * blocks.size[1] + head) * blocks.size[2] + query / kMaskQueries;
    const uint8_t* set =
        static_cast<const uint8_t*>(blocks.data) + line * columns + first_key / kMaskKeys;
    for (int64_t first = 0; first < group; first += kMaskKeys) {
      if (set[first / kMaskKeys] == 0) continue;
      const int64_t here = smaller(kMaskKeys, group - first);
      if (count > 0 && list[count - 1].first + list[count - 1].count == first) {
        list[count - 1].count += here;
      } else {
        list[count++] = {first, here};
      }
      keys += here;
    }
  }
};

}  // namespace vidgen::cpu::VIDGEN_ISA
