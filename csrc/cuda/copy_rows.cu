#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

// Strides of a (B, L, H, D) tensor, in packs of that many elements.
struct Strides {
  int64_t b, l, h;

  Strides(const TensorView& view, int64_t pack)
      : b(view.stride[0] / pack), l(view.stride[1] / pack), h(view.stride[2] / pack) {}
};

// One block a token: thread i takes every blockDim.x-th pack of the token's H * D numbers.
template <class P>
__global__ void __launch_bounds__(256) copy_kernel(const P* x, Strides from, P* out, Strides to,
                                                   int64_t length, int heads, int packs) {
  const int64_t b = blockIdx.x / length;
  const int64_t l = blockIdx.x % length;
  const P* source = x + b * from.b + l * from.l;
  P* target = out + b * to.b + l * to.l;
  for (int i = static_cast<int>(threadIdx.x); i < heads * packs;
       i += static_cast<int>(blockDim.x)) {
    const int h = i / packs;
    const int j = i % packs;
    target[h * to.h + j] = source[h * from.h + j];
  }
}

template <class P>
void launch_copy(const CopyRows& a, int64_t pack, const Launch& launch) {
  const int64_t packs = a.x.size[3] / pack;
  start("copy_rows_forward", copy_kernel<P>, blocks(a.x.size[0] * a.x.size[1]),
        threads_for(a.x.size[2] * packs), 0, launch, static_cast<const P*>(a.x.data),
        Strides(a.x, pack), static_cast<P*>(a.out.data), Strides(a.out, pack), a.x.size[1],
        static_cast<int>(a.x.size[2]), static_cast<int>(packs));
}

}  // namespace

int64_t copy_rows_forward_workspace(const CopyRows&) { return 0; }

void copy_rows_forward(const CopyRows& a, const Launch& launch) {
  check(a);
  if (a.x.elements() == 0) return;
  const int64_t bytes = bytes_of(a.x.dtype);
  const int count = static_cast<int>(16 / bytes);
  if (packs_fit(a.x, count) && packs_fit(a.out, count)) {
    launch_copy<uint4>(a, count, launch);
  } else if (bytes == 4) {
    launch_copy<uint32_t>(a, 1, launch);
  } else {
    launch_copy<uint16_t>(a, 1, launch);
  }
}

}  // namespace vidgen::cuda
