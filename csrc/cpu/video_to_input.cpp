#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

// One line of W pixels of one channel.
template <class Element>
VIDGEN_INLINE void line(const uint8_t* pixels, int64_t channels, int64_t width, bool flip,
                        const Element* table, Element* out) {
  if (flip) {
    for (int64_t w = 0; w < width; ++w) out[w] = table[pixels[(width - 1 - w) * channels]];
  } else {
    for (int64_t w = 0; w < width; ++w) out[w] = table[pixels[w * channels]];
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
  // A chunk is one frame: its lines are read once and stay in the cache for every channel.
  in_parallel(a.frames.size[0] * frames, threads, [&](int64_t chunk) {
    const int64_t b = chunk / frames;
    const int64_t t = chunk % frames;
    for (int64_t h = 0; h < height; ++h) {
      const uint8_t* pixels = row<const uint8_t>(a.frames, b, t) + h * a.frames.stride[2];
      for (int64_t c = 0; c < channels; ++c) {
        Element* out = static_cast<Element*>(a.out.data) +
                       (((b * channels + c) * frames + t) * height + h) * width;
        line(pixels + c, channels, width, flip[b] != 0, table + c * 256, out);
      }
    }
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
