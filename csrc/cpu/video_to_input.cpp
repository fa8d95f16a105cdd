#include "cpu/stream.h"
#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

#if defined(__AVX512F__)

// Byte `channel` of 16 pixels of three bytes, a word of 32 bits each.
VIDGEN_INLINE __m512i indices_of(const uint8_t* pixels, int channel) {
  // Four pixels, 12 bytes, to each quarter; there a byte to each word.
  const __m512i quarters = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
  const char c = static_cast<char>(channel);
  const __m128i bytes =
      _mm_setr_epi8(c, -1, -1, -1, c + 3, -1, -1, -1, c + 6, -1, -1, -1, c + 9, -1, -1, -1);
  const __m512i raw = _mm512_maskz_loadu_epi8(0x0000ffffffffffff, pixels);
  return _mm512_maskz_shuffle_epi8(~__mmask64{0},
                                   _mm512_maskz_permutexvar_epi32(kAll, quarters, raw),
                                   _mm512_maskz_broadcast_i32x4(kAll, bytes));
}

// The table of a channel in registers: what stands at each of a vector of indices.
struct Table32 {
  static constexpr int kCount = 16;
  __m512i part[16];

  VIDGEN_INLINE explicit Table32(const uint32_t* table) {
    for (int i = 0; i < 16; ++i) part[i] = load_vector<__m512i>(table + 16 * i);
  }
  VIDGEN_INLINE __m512i at(const uint8_t* pixels, int channel, bool flip) const {
    __m512i index = indices_of(pixels, channel);
    if (flip) {
      index = _mm512_maskz_permutexvar_epi32(
          kAll, _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), index);
    }
    // A permutation of two registers reads 5 bits of an index; the other three choose among eight.
    const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
    const __mmask16 bit7 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(128));
    __m512i found[8];
    for (int i = 0; i < 8; ++i) {
      found[i] = _mm512_permutex2var_epi32(part[2 * i], index, part[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
      found[i] = _mm512_mask_blend_epi32(bit5, found[2 * i], found[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      found[i] = _mm512_mask_blend_epi32(bit6, found[2 * i], found[2 * i + 1]);
    }
    return _mm512_mask_blend_epi32(bit7, found[0], found[1]);
  }
};

struct Table16 {
  static constexpr int kCount = 32;
  __m512i part[8];

  VIDGEN_INLINE explicit Table16(const uint16_t* table) {
    for (int i = 0; i < 8; ++i) part[i] = load_vector<__m512i>(table + 32 * i);
  }
  VIDGEN_INLINE __m512i at(const uint8_t* pixels, int channel, bool flip) const {
    // Packing joins the quarters of the two in turns.
    __m512i index = _mm512_maskz_packus_epi32(~__mmask32{0}, indices_of(pixels, channel),
                                              indices_of(pixels + 48, channel));
    index = _mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), index);
    if (flip) {
      alignas(64) static constexpr uint16_t kReversed[32] = {
          31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
          15, 14, 13, 12, 11, 10, 9,  8,  7,  6,  5,  4,  3,  2,  1,  0};
      index = _mm512_maskz_permutexvar_epi16(~__mmask32{0}, load_vector<__m512i>(kReversed), index);
    }
    const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    __m512i found[4];
    for (int i = 0; i < 4; ++i) {
      found[i] = _mm512_permutex2var_epi16(part[2 * i], index, part[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      found[i] = _mm512_mask_blend_epi16(bit6, found[2 * i], found[2 * i + 1]);
    }
    return _mm512_mask_blend_epi16(bit7, found[0], found[1]);
  }
};

VIDGEN_INLINE Table32 registers_of(const uint32_t* table) { return Table32(table); }
VIDGEN_INLINE Table16 registers_of(const uint16_t* table) { return Table16(table); }

// Whole vectors of a line of three channels; returns how many pixels that was.
template <class Element>
VIDGEN_INLINE int64_t line_of_vectors(const uint8_t* line, int channel, int64_t width, bool flip,
                                      bool streamed, const Element* table, Element* out) {
  const auto in_registers = registers_of(table);
  constexpr int64_t kCount = decltype(in_registers)::kCount;
  int64_t w = 0;
  for (; w + kCount <= width; w += kCount) {
    const int64_t first = flip ? width - w - kCount : w;
    const __m512i found = in_registers.at(line + 3 * first, channel, flip);
    if (streamed) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out + w), found);
    } else {
      std::memcpy(out + w, &found, sizeof found);
    }
  }
  return w;
}

#endif

// One line of W pixels of one channel. `line` is that of all channels.
template <class Element>
VIDGEN_INLINE void line_of_channel(const uint8_t* line, int64_t channels, int64_t channel,
                                   int64_t width, bool flip, bool streamed, const Element* table,
                                   Element* out) {
  int64_t w = 0;
#if defined(__AVX512F__)
  if (channels == 3) {
    const int c = static_cast<int>(channel);
    w = line_of_vectors(line, c, width, flip, streamed, table, out);
  }
#else
  (void)streamed;
#endif
  const uint8_t* pixels = line + channel;
  if (flip) {
    for (; w < width; ++w) out[w] = table[pixels[(width - 1 - w) * channels]];
  } else {
    for (; w < width; ++w) out[w] = table[pixels[w * channels]];
  }
}

template <class Element>
void frames_to_input(const VideoToInput& a, int threads) {
  const int64_t frames = a.frames.size[1];
  const int64_t height = a.frames.size[2];
  const int64_t width = a.frames.size[3];
  const int64_t channels = a.frames.size[4];
  const auto* flip = static_cast<const uint8_t*>(a.flip.data);
  const auto* table = static_cast<const Element*>(a.table.data);
  const bool streamed = is_streamed(a.out);
  // A chunk is one frame: its lines are read once and stay in the cache for every channel.
  in_parallel(a.frames.size[0] * frames, threads, [&](int64_t chunk) {
    const int64_t b = chunk / frames;
    const int64_t t = chunk % frames;
    for (int64_t h = 0; h < height; ++h) {
      const uint8_t* pixels = row<const uint8_t>(a.frames, b, t) + h * a.frames.stride[2];
      for (int64_t c = 0; c < channels; ++c) {
        Element* out = static_cast<Element*>(a.out.data) +
                       (((b * channels + c) * frames + t) * height + h) * width;
        line_of_channel(pixels, channels, c, width, flip[b] != 0, streamed, table + c * 256, out);
      }
    }
    if (streamed) end_stream();
  });
}

}  // namespace

void video_to_input_forward(const VideoToInput& a, int threads) {
  if (bytes_of(a.out.dtype) == 2) {
    frames_to_input<uint16_t>(a, threads);
  } else {
    frames_to_input<uint32_t>(a, threads);
  }
}

}  // namespace vidgen::cpu::VIDGEN_ISA
