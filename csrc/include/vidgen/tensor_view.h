// A non-owning tensor: address, element type, sizes and strides.
#pragma once

#include <cstdint>

namespace vidgen {

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, u8 = 3, i32 = 4 };

inline int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

struct TensorView {
  static constexpr int kMaxDims = 5;

  void* data = nullptr;
  DType dtype = DType::f32;
  int dims = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < dims; ++i) count *= size[i];
    return count;
  }
};

}  // namespace vidgen
