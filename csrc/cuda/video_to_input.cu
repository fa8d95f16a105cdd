#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kThreads = 256;

struct Frames {
  const uint8_t* data;
  int64_t of_sample, of_frame, of_line;  // strides
  int64_t frames, height, width, channels;
};

// A thread has N neighbouring output pixels of one line, in every channel.
template <class Element, int N>
__global__ void __launch_bounds__(kThreads)
    video_kernel(Frames in, const Element* table, const uint8_t* flip, Element* out,
                 int64_t packs) {
  auto* shared = dynamic_shared<Element>();
  for (int64_t i = threadIdx.x; i < in.channels * 256; i += kThreads) shared[i] = table[i];
  __syncthreads();
  const int64_t pack = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (pack >= packs) return;
  const int64_t packs_of_line = in.width / N;
  const int64_t w = pack % packs_of_line * N;
  const int64_t line = pack / packs_of_line;
  const int64_t h = line % in.height;
  const int64_t t = line / in.height % in.frames;
  const int64_t b = line / in.height / in.frames;
  const uint8_t* pixels = in.data + b * in.of_sample + t * in.of_frame + h * in.of_line;
  const bool mirrored = flip[b] != 0;
  for (int64_t c = 0; c < in.channels; ++c) {
    Pack<Element, N> values;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int64_t from = mirrored ? in.width - 1 - (w + n) : w + n;
      values.element[n] = shared[c * 256 + pixels[from * in.channels + c]];
    }
    const int64_t at = (((b * in.channels + c) * in.frames + t) * in.height + h) * in.width + w;
    *reinterpret_cast<Pack<Element, N>*>(out + at) = values;
  }
}

template <class Element, int N>
void launch_video(const VideoToInput& a, const Launch& launch) {
  const Frames in{static_cast<const uint8_t*>(a.frames.data),
                  a.frames.stride[0],
                  a.frames.stride[1],
                  a.frames.stride[2],
                  a.frames.size[1],
                  a.frames.size[2],
                  a.frames.size[3],
                  a.frames.size[4]};
  const int64_t packs = a.frames.size[0] * in.frames * in.height * (in.width / N);
  const std::size_t shared = static_cast<std::size_t>(in.channels) * 256 * sizeof(Element);
  start("video_to_input_forward", video_kernel<Element, N>,
        blocks((packs + kThreads - 1) / kThreads), kThreads, shared, launch, in,
        static_cast<const Element*>(a.table.data), static_cast<const uint8_t*>(a.flip.data),
        static_cast<Element*>(a.out.data), packs);
}

template <class Element>
void launch_widest(const VideoToInput& a, const Launch& launch) {
  if (packs_fit(a.out, 4)) {
    launch_video<Element, 4>(a, launch);
  } else {
    launch_video<Element, 1>(a, launch);
  }
}

}  // namespace

int64_t video_to_input_forward_workspace(const VideoToInput&) { return 0; }

void video_to_input_forward(const VideoToInput& a, const Launch& launch) {
  check(a);
  if (a.out.elements() == 0) return;
  if (bytes_of(a.out.dtype) == 2) {
    launch_widest<uint16_t>(a, launch);
  } else {
    launch_widest<uint32_t>(a, launch);
  }
}

}  // namespace vidgen::cuda
