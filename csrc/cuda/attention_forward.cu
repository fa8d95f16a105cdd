// Attention: a block has 128 queries of a head and loops over the keys 64 at a time.
//
// A warp has whole rows of scores, so the softmax only exchanges data within the warp. While it
// multiplies with one tile (keys, then values) the next is loaded: the buffer of either is free as
// soon as the other is in use.
#include "cuda/attention_tiles.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kKeys = 64;
static_assert(kKeys == kMaskKeys);

template <class T>
struct Forward {
  HeadsOf<const T> q, k, v;
  Results<T> out;
  float* lse;
  Visible visible;
  int queries, width;
  float scale;
};

// Warps, and pieces of 16 rows of each: more rows share what a warp reads of keys and values, as
// long as their results fit the registers.
template <int kWidth>
struct Shape {
  static constexpr int kWarps = kWidth <= 128 ? 4 : 8;
  static constexpr int kRowTiles = kWidth <= 128 ? 2 : 1;
  static constexpr int kThreads = kWarps * kLanesOfWarp;
  static constexpr int kRows = kWarps * kRowTiles * 16;
  static constexpr int kBlocksAtOnce = kWidth <= 128 ? 2 : 1;
  using Queries = Tile<kRows, kWidth>;
  using Keys = Tile<kKeys, kWidth>;
  static constexpr std::size_t kShared = Queries::kBytes + 2 * Keys::kBytes;
  static_assert(kRows == kMaskQueries);
};

// The softmax of one row, so far.
struct Row {
  float largest = -kInfinity, sum = 0.0f;
};

__device__ __forceinline__ float over_row(float value, bool largest) {
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, value, lanes);
    value = largest ? fmaxf(value, other) : value + other;
  }
  return value;
}

// Turns scores into exp2(factor * (score - largest so far)); returns what earlier sums shrink by.
template <int kColumnTiles>
__device__ __forceinline__ float grow_row(Row& row, float (&scores)[kColumnTiles][4], int half,
                                          float factor) {
  float largest = -kInfinity;
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
    largest = fmaxf(largest, fmaxf(scores[n][half], scores[n][half + 1]));
  }
  largest = fmaxf(row.largest, over_row(largest, true));
  // No key yet: any finite number gives exp2(-inf) = 0 below.
  const float origin = largest == -kInfinity ? 0.0f : largest * factor;
  const float shrink = exp2_fast(row.largest * factor - origin);
  row.largest = largest;
  row.sum *= shrink;
#pragma unroll
  for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
    for (int i = half; i < half + 2; ++i) {
      scores[n][i] = exp2_fast(scores[n][i] * factor - origin);
      row.sum += scores[n][i];
    }
  }
  return shrink;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(Shape<kWidth>::kThreads, Shape<kWidth>::kBlocksAtOnce)
    forward_kernel(Forward<T> a) {
  using S = Shape<kWidth>;
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int first_query = static_cast<int>(blockIdx.x) * S::kRows;
  const int first_row = warp_of_thread() * S::kRowTiles * 16;
  const int keys = a.visible.keys_of(b);
  const int blocks = (keys + kKeys - 1) / kKeys;
  const uint8_t* mask = a.visible.of(b, h);
  if (mask != nullptr) mask += static_cast<int64_t>(blockIdx.x) * a.visible.columns;
  const auto next_visible = [&](int block) {
    while (mask != nullptr && block < blocks && mask[block] == 0) ++block;
    return block;
  };

  const uint32_t q_tile = shared_address(dynamic_shared<char>());
  const uint32_t k_tile = q_tile + S::Queries::kBytes;
  const uint32_t v_tile = k_tile + S::Keys::kBytes;
  const float factor = a.scale * kLog2E;
  Row rows[S::kRowTiles][2];
  float out[S::kRowTiles][kWidth / 8][4];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) set_zero(out[m]);

  int block = next_visible(0);
  if (block < blocks) {
    load_tile<typename S::Queries, S::kThreads>(q_tile, a.q.head(b, h), first_query, a.queries,
                                                a.width);
    load_tile<typename S::Keys, S::kThreads>(k_tile, a.k.head(b, h), block * kKeys, keys, a.width);
  }
  commit_copies();
  while (block < blocks) {
    wait_for_copies<0>();
    __syncthreads();  // the keys have arrived, and the previous values are no longer needed
    load_tile<typename S::Keys, S::kThreads>(v_tile, a.v.head(b, h), block * kKeys, keys, a.width);
    commit_copies();
    float scores[S::kRowTiles][kKeys / 8][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) set_zero(scores[m]);
    multiply_rows_by_rows<T, typename S::Queries, typename S::Keys>(scores, q_tile, first_row,
                                                                    k_tile);
    wait_for_copies<0>();
    __syncthreads();  // the values have arrived, and these keys are no longer needed
    const int there = keys - block * kKeys;
    if (there < kKeys) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool hidden = 8 * n + lane_of_thread() % 4 * 2 + i % 2 >= there;
#pragma unroll
          for (int m = 0; m < S::kRowTiles; ++m) {
            if (hidden) scores[m][n][i] = -kInfinity;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float shrink = grow_row(rows[m][half], scores[m], 2 * half, factor);
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
          out[m][n][2 * half] *= shrink;
          out[m][n][2 * half + 1] *= shrink;
        }
      }
    }
    uint32_t weights[S::kRowTiles][kKeys / 16][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) round_left<T>(weights[m], scores[m]);
    const int next = next_visible(block + 1);
    if (next < blocks) {
      load_tile<typename S::Keys, S::kThreads>(k_tile, a.k.head(b, h), next * kKeys, keys, a.width);
    }
    commit_copies();
    multiply_registers<T, typename S::Keys>(out, weights, v_tile, 0);
    block = next;
  }

#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = over_row(rows[m][half].sum, false);
      const int query = first_query + first_row + 16 * m + 8 * half + lane_of_thread() / 4;
      if (query >= a.queries) continue;
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (lane_of_thread() % 4 == 0) {
        a.lse[(int64_t{b} * gridDim.y + h) * a.queries + query] =
            sum == 0.0f ? -kInfinity : rows[m][half].largest * a.scale + logf(sum);
      }
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const int column = 8 * n + lane_of_thread() % 4 * 2;
        if (column < a.width) {
          a.out.store(b, h, query, column, out[m][n][2 * half] * inverse,
                      out[m][n][2 * half + 1] * inverse);
        }
      }
    }
  }
}

}  // namespace

int64_t attention_forward_workspace(const AttentionForward&) { return 0; }

void attention_forward(const AttentionForward& a, const Launch& launch) {
  check(a);
  expect_chunks("q", a.q);
  expect_chunks("k", a.k);
  expect_chunks("v", a.v);
  expect_chunks("out", a.out);
  if (a.q.elements() == 0) return;
  with_tiles("q", a.q, [&](auto element, auto width) {
    using T = decltype(element);
    using S = Shape<decltype(width)::value>;
    const dim3 grid(blocks((a.q.size[1] + S::kRows - 1) / S::kRows), blocks(a.q.size[2]),
                    blocks(a.q.size[0]));
    const Forward<T> arguments{HeadsOf<const T>(a.q),
                               HeadsOf<const T>(a.k),
                               HeadsOf<const T>(a.v),
                               Results<T>(a.out),
                               static_cast<float*>(a.lse.data),
                               Visible(a.key_lengths, a.blocks, a.k.size[1]),
                               static_cast<int>(a.q.size[1]),
                               static_cast<int>(a.q.size[3]),
                               a.scale};
    start("attention_forward", forward_kernel<T, decltype(width)::value>, grid, S::kThreads,
          S::kShared, launch, arguments);
  });
}

}  // namespace vidgen::cuda
