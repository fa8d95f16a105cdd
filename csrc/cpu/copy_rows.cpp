#include "cpu/tokens.h"

namespace vidgen::cpu::VIDGEN_ISA {

void copy_rows_forward(const CopyRows& a, int threads) {
  // Heads adjacent in both tensors are copied as one contiguous range.
  const int64_t width = a.x.size[3];
  const bool side_by_side = a.x.stride[2] == width && a.out.stride[2] == width;
  const int64_t heads = side_by_side ? 1 : a.x.size[2];
  const int64_t bytes = bytes_of(a.x.dtype);
  const int64_t run = (side_by_side ? a.x.size[2] * width : width) * bytes;
  const int64_t length = a.x.size[1];
  const int64_t tokens = a.x.size[0] * length;
  const int64_t per_chunk = rows_per_chunk(tokens, a.x.size[2] * width, threads);
  const auto at = [bytes](const TensorView& view, int64_t b, int64_t l, int64_t h) {
    const int64_t element = b * view.stride[0] + l * view.stride[1] + h * view.stride[2];
    return static_cast<char*>(view.data) + element * bytes;
  };
  in_parallel(divided_up(tokens, per_chunk), threads, [&](int64_t chunk) {
    const int64_t end = smaller(tokens, (chunk + 1) * per_chunk);
    for (int64_t n = chunk * per_chunk; n < end; ++n) {
      for (int64_t h = 0; h < heads; ++h) {
        std::memcpy(at(a.out, n / length, n % length, h), at(a.x, n / length, n % length, h),
                    std::size_t(run));
      }
    }
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
