// Gradients of queries: a block owns queries of a head and meets the keys 32 at a time.
#pragma once

#include "cuda/attention_backward.cuh"

namespace vidgen::cuda {

template <int kWidth>
struct GradQueriesShape {
  static constexpr int kWarps = 4;
  static constexpr int kRowTiles = kWidth <= 128 ? 2 : 1;
  static constexpr int kThreads = kWarps * kLanesOfWarp;
  static constexpr int kRows = kWarps * kRowTiles * 16;
  static constexpr int kKeys = 32;
  using Queries = Tile<kRows, kWidth>;
  using Keys = Tile<kKeys, kWidth>;
  static constexpr uint32_t kStageBytes = 2 * Keys::kBytes;
  static constexpr std::size_t kShared = 2 * Queries::kBytes + 2 * kStageBytes;
  static_assert(kMaskQueries % kRows == 0 && kMaskKeys % kKeys == 0);
};

template <class T, int kWidth>
__global__ void __launch_bounds__(GradQueriesShape<kWidth>::kThreads, 2)
    grad_queries_kernel(AttentionGradients<T> a) {
  using S = GradQueriesShape<kWidth>;
  constexpr int kPieces = S::kKeys / 8;
  const int h = static_cast<int>(blockIdx.y);
  const int b = static_cast<int>(blockIdx.z);
  const int first_query = static_cast<int>(blockIdx.x) * S::kRows;
  const int first_row = warp_of_thread() * S::kRowTiles * 16;
  const int keys = a.visible.keys_of(b);
  const int tiles = (keys + S::kKeys - 1) / S::kKeys;
  const uint8_t* mask = a.visible.of(b, h);
  if (mask != nullptr) {
    mask += static_cast<int64_t>(first_query / static_cast<int>(kMaskQueries)) * a.visible.columns;
  }
  const auto next_visible = [&](int tile) {
    constexpr int kTilesOfBlock = static_cast<int>(kMaskKeys) / S::kKeys;
    while (mask != nullptr && tile < tiles && mask[tile / kTilesOfBlock] == 0) ++tile;
    return tile;
  };

  const uint32_t q_tile = shared_address(dynamic_shared<char>());
  const uint32_t grad_tile = q_tile + S::Queries::kBytes;
  const uint32_t stages = grad_tile + S::Queries::kBytes;
  const auto load_stage = [&](int tile, int stage) {
    const uint32_t to = stages + static_cast<uint32_t>(stage) * S::kStageBytes;
    load_tile<typename S::Keys, S::kThreads>(to, a.k.head(b, h), tile * S::kKeys, keys, a.width);
    load_tile<typename S::Keys, S::kThreads>(to + S::Keys::kBytes, a.v.head(b, h), tile * S::kKeys,
                                             keys, a.width);
  };

  const float factor = a.scale * kLog2E;
  float2 terms[S::kRowTiles][2];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + first_row + 16 * m + 8 * half + lane_of_thread() / 4;
      terms[m][half] =
          a.terms[(int64_t{b} * gridDim.y + h) * a.padded + query];  // padded to whole blocks
    }
  }
  float grad_q[S::kRowTiles][kWidth / 8][4];
#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) set_zero(grad_q[m]);
  int tile = next_visible(0);
  int stage = 0;
  if (tile < tiles) {
    load_tile<typename S::Queries, S::kThreads>(q_tile, a.q.head(b, h), first_query, a.queries,
                                                a.width);
    load_tile<typename S::Queries, S::kThreads>(grad_tile, a.grad_out.head(b, h), first_query,
                                                a.queries, a.width);
    load_stage(tile, stage);
  }
  commit_copies();
  while (tile < tiles) {
    wait_for_copies<0>();
    __syncthreads();  // this stage has arrived, and the other is no longer needed
    const uint32_t k_tile = stages + static_cast<uint32_t>(stage) * S::kStageBytes;
    const uint32_t v_tile = k_tile + S::Keys::kBytes;
    const int there = keys - tile * S::kKeys;
    tile = next_visible(tile + 1);
    stage ^= 1;
    if (tile < tiles) load_stage(tile, stage);
    commit_copies();

    float weights[S::kRowTiles][kPieces][4];
    float grads[S::kRowTiles][kPieces][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
      set_zero(weights[m]);
      set_zero(grads[m]);
    }
    multiply_rows_by_rows<T, typename S::Queries, typename S::Keys>(weights, q_tile, first_row,
                                                                    k_tile);
    multiply_rows_by_rows<T, typename S::Queries, typename S::Keys>(grads, grad_tile, first_row,
                                                                    v_tile);
    uint32_t left[S::kRowTiles][kPieces / 2][4];
#pragma unroll
    for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool seen = 8 * n + lane_of_thread() % 4 * 2 + i % 2 < there;
          const float2 term = terms[m][i / 2];
          const float weight = seen ? weight_of(weights[m][n][i], factor, term.x) : 0.0f;
          grads[m][n][i] = weight * (grads[m][n][i] - term.y);
        }
      }
      round_left<T>(left[m], grads[m]);
    }
    multiply_registers<T, typename S::Keys>(grad_q, left, k_tile, 0);
  }

#pragma unroll
  for (int m = 0; m < S::kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + first_row + 16 * m + 8 * half + lane_of_thread() / 4;
      if (query >= a.queries) continue;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        const int column = 8 * n + lane_of_thread() % 4 * 2;
        if (column >= a.width) continue;
        a.grad_q.store(b, h, query, column, grad_q[m][n][2 * half] * a.scale,
                       grad_q[m][n][2 * half + 1] * a.scale);
      }
    }
  }
}

}  // namespace vidgen::cuda
