// Tiles of heads in shared memory, and the products of a warp with them.
//
// A warp multiplies in pieces of 16 x 8 x 16. What it reads of a tile is always 16 rows and two
// chunks of 8 elements, as four registers: rows 0 to 7 of either chunk, then rows 8 to 15 of
// either. The roles differ only in the order the registers are used in, so one set of addresses
// serves all.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "vidgen/attention.h"

namespace vidgen::cuda {

constexpr int kLanesOfWarp = 32;
constexpr float kLog2E = 1.44269504f;
constexpr float kInfinity = __builtin_huge_valf();

__device__ __forceinline__ int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % kLanesOfWarp;
}
__device__ __forceinline__ int warp_of_thread() {
  return static_cast<int>(threadIdx.x) / kLanesOfWarp;
}

// ---- tensors ----

// The rows of one head.
template <class T>
struct Head {
  T* data;
  int64_t of_row;  // stride
};

// A (B, L, H, D) tensor.
template <class T>
struct HeadsOf {
  T* data;
  int64_t of_sample, of_row, of_head;  // strides

  explicit HeadsOf(const TensorView& view)
      : data(static_cast<T*>(view.data)),
        of_sample(view.stride[0]),
        of_row(view.stride[1]),
        of_head(view.stride[2]) {}
  HeadsOf(T* data, int64_t of_sample, int64_t of_row, int64_t of_head)
      : data(data), of_sample(of_sample), of_row(of_row), of_head(of_head) {}
  __device__ __forceinline__ Head<T> head(int b, int h) const {
    return {data + b * of_sample + h * of_head, of_row};
  }
};

// A (B, L, H, D) tensor of results, of type T or float32.
template <class T>
struct Results {
  HeadsOf<T> narrow;
  float* wide;

  explicit Results(const TensorView& view)
      : narrow(view), wide(view.dtype == DType::f32 ? static_cast<float*>(view.data) : nullptr) {}
  __device__ __forceinline__ void store(int b, int h, int row, int column, float first,
                                        float second) const {
    const int64_t at = b * narrow.of_sample + row * narrow.of_row + h * narrow.of_head + column;
    if (wide != nullptr) {
      *reinterpret_cast<float2*>(wide + at) = make_float2(first, second);
    } else {
      *reinterpret_cast<uint32_t*>(narrow.data + at) = pack_pair(first, second, T{});
    }
  }
};

// Which keys a query sees.
struct Visible {
  const int32_t* key_lengths;
  const uint8_t* blocks;
  int64_t of_sample, of_head;  // strides of blocks
  int keys, columns;           // all keys, and blocks of them

  Visible(const TensorView& lengths, const TensorView& mask, int64_t keys)
      : key_lengths(lengths.dims != 0 ? static_cast<const int32_t*>(lengths.data) : nullptr),
        blocks(mask.dims != 0 ? static_cast<const uint8_t*>(mask.data) : nullptr),
        of_sample(mask.dims != 0 && mask.size[0] > 1 ? mask.size[1] * mask.size[2] * mask.size[3]
                                                     : 0),
        of_head(mask.dims != 0 && mask.size[1] > 1 ? mask.size[2] * mask.size[3] : 0),
        keys(static_cast<int>(keys)),
        columns(static_cast<int>((keys + kMaskKeys - 1) / kMaskKeys)) {}

  __device__ __forceinline__ int keys_of(int b) const {
    if (key_lengths == nullptr) return keys;
    const int length = key_lengths[b];
    return length < keys ? length : keys;
  }
  // The first of the mask's blocks for this head, or null.
  __device__ __forceinline__ const uint8_t* of(int b, int h) const {
    return blocks == nullptr ? nullptr : blocks + b * of_sample + h * of_head;
  }
};

// ---- tiles ----

// kRows x kWidth elements of 16 bits. The chunks of 16 bytes of a row are permuted so that eight
// rows of one column of chunks lie in different banks.
template <int kRows_, int kWidth_>
struct Tile {
  static constexpr int kRows = kRows_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kChunks = kWidth / 8;
  static constexpr uint32_t kBytes = kRows * kWidth * 2;
  static constexpr int kGroup = kChunks % 8 == 0 ? 8 : 4;  // chunks change places within a group
  static_assert(kChunks % kGroup == 0);

  __device__ __forceinline__ static int turn(int row) {
    return kGroup == 8 ? row & 7 : row >> 1 & 3;
  }
  __device__ __forceinline__ static uint32_t at(int row, int chunk) {
    return static_cast<uint32_t>(row * kChunks + (chunk ^ turn(row))) * 16;
  }
};

// Which row and chunk of 16 rows and two chunks this lane names to ldmatrix.
template <class T>
class LaneAddress {
 public:
  __device__ __forceinline__ LaneAddress() {
    const int lane = lane_of_thread();
    const int row = (lane & 7) + (lane >> 4) * 8;
    row_ = static_cast<uint32_t>(row * T::kChunks) * 16;
    turn_ = static_cast<uint32_t>(T::turn(row) ^ (lane >> 3 & 1)) * 16;
  }
  // Of those that begin at this row, a multiple of 16, and at this chunk, a multiple of 2.
  __device__ __forceinline__ uint32_t of(uint32_t tile, int first_row, int chunk) const {
    // Few different sums: what is known when compiling stays outside of the exclusive or.
    const int group = chunk / T::kGroup * T::kGroup;
    return tile + row_ + static_cast<uint32_t>(first_row * T::kChunks + group) * 16 +
           (static_cast<uint32_t>(chunk - group) * 16 ^ turn_);
  }

 private:
  uint32_t row_, turn_;
};

// Starts to copy a tile from the rows that begin at `from`; rows and columns that are not there
// become zeros.
template <class Tile, int kThreads, class T>
__device__ __forceinline__ void load_tile(uint32_t to, Head<const T> from, int first_row, int rows,
                                          int width) {
  static_assert(Tile::kRows * Tile::kChunks % kThreads == 0);
#pragma unroll 2  // more addresses at once would spill
  for (int i = 0; i < Tile::kRows * Tile::kChunks / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = index / Tile::kChunks;
    const int chunk = index % Tile::kChunks;
    const bool there = first_row + row < rows && chunk * 8 < width;
    const T* source = from.data + (first_row + row) * from.of_row + chunk * 8;
    copy_async(to + Tile::at(row, chunk), there ? source : from.data, there);
  }
}

// ---- products of a warp ----

template <int kCount>
__device__ __forceinline__ void set_zero(float (&piece)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) piece[n][i] = 0.0f;
  }
}

// c[m][n] += rows of `left` times rows of `right`, over the whole width: m-th 16 rows of `left`
// after first_row, n-th 8 rows of `right`.
template <class T, class LeftTile, class RightTile, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void multiply_rows_by_rows(float (&c)[kRowTiles][kColumnTiles][4],
                                                      uint32_t left, int first_row,
                                                      uint32_t right) {
  static_assert(LeftTile::kWidth == RightTile::kWidth);
  const LaneAddress<LeftTile> lane;
#pragma unroll
  for (int step = 0; step < LeftTile::kWidth / 16; ++step) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      uint32_t found[4];
      load_matrices(found, lane.of(left, first_row + 16 * m, 2 * step));
      a[m][0] = found[0];
      a[m][1] = found[2];
      a[m][2] = found[1];
      a[m][3] = found[3];
    }
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t b[4];
      load_matrices(b, lane.of(right, 8 * n, 2 * step));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add<T>(c[m][n], a[m], b[0], b[1]);
        multiply_add<T>(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// What such products leave, 16 rows of it, rounded to be the left factor of the next.
template <class T, int kPieces>
__device__ __forceinline__ void round_left(uint32_t (&left)[kPieces / 2][4],
                                           const float (&product)[kPieces][4]) {
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    left[n / 2][n % 2 * 2] = pack_pair(product[n][0], product[n][1], T{});
    left[n / 2][n % 2 * 2 + 1] = pack_pair(product[n][2], product[n][3], T{});
  }
}

// c[m][n] += left[m] times `right`, whose rows are the columns of `left`; n-th 8 columns after
// first_chunk.
template <class T, class RightTile, int kRowTiles, int kSteps, int kColumnTiles>
__device__ __forceinline__ void multiply_registers(float (&c)[kRowTiles][kColumnTiles][4],
                                                   const uint32_t (&left)[kRowTiles][kSteps][4],
                                                   uint32_t right, int first_chunk) {
  const LaneAddress<RightTile> lane;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, lane.of(right, 16 * step, first_chunk + n));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add<T>(c[m][n], left[m][step], b[0], b[2]);
        multiply_add<T>(c[m][n + 1], left[m][step], b[1], b[3]);
      }
    }
  }
}

// ---- on the host ----

// body(T{}, Width<N>{}) with T the type of the heads and N the width of the tiles.
template <int N>
struct TileWidth {
  static constexpr int value = N;
};

template <class Body>
void with_tiles(const char* name, const TensorView& q, Body&& body) {
  const auto choose = [&](auto element) {
    const int64_t width = q.size[3];
    if (width <= 32) return body(element, TileWidth<32>{});
    if (width <= 64) return body(element, TileWidth<64>{});
    if (width <= 96) return body(element, TileWidth<96>{});
    if (width <= 128) return body(element, TileWidth<128>{});
    if (width <= 192) return body(element, TileWidth<192>{});
    return body(element, TileWidth<256>{});
  };
  switch (q.dtype) {
    case DType::bf16:
      return choose(__nv_bfloat16{});
    case DType::f16:
      return choose(__half{});
    default:
      throw std::invalid_argument(std::string(name) +
                                  ": takes bfloat16 or float16 on a GPU, not another type");
  }
}

// Rows are copied 16 bytes at a time.
inline void expect_chunks(const char* name, const TensorView& view) {
  bool fit = view.size[3] % 8 == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (int i = 0; i < 3; ++i) {
    fit = fit && (view.size[i] <= 1 || view.stride[i] * bytes_of(view.dtype) % 16 == 0);
  }
  if (!fit && view.elements() > 0) {
    throw std::invalid_argument(std::string(name) +
                                ": has rows that are not multiples of 8 elements on boundaries of "
                                "16 bytes, which attention on a GPU needs");
  }
}

}  // namespace vidgen::cuda
