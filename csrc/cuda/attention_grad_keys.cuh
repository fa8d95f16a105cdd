// Gradients of keys and values: a block owns 64 keys of a head and meets the queries tile by tile.
//
// Everything is transposed: a warp has the scores of its 16 keys with all queries of a tile, so the
// weights it computes are at once the left factor of the products that give its gradients.
#pragma once

#include "cuda/attention_backward.cuh"

namespace vidgen::cuda {

template <int kWidth>
struct GradKeysShape {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kLanesOfWarp;
  static constexpr int kKeys = kWarps * 16;
  static constexpr int kQueries = kWidth < 128 ? 64 : 32;
  // Wide heads are cut in two parts, each with a block of its own, so that the sums fit registers.
  static constexpr int kParts = kWidth <= 128 ? 1 : 2;
  static constexpr int kColumns = kWidth / kParts;
  using Keys = Tile<kKeys, kWidth>;
  using Queries = Tile<kQueries, kWidth>;
  static constexpr uint32_t kTermBytes = kQueries * sizeof(float2);
  static constexpr uint32_t kStageBytes = 2 * Queries::kBytes + kTermBytes;
  static constexpr std::size_t kShared = 2 * Keys::kBytes + 2 * kStageBytes;
  static_assert(kKeys == kMaskKeys && kMaskQueries % kQueries == 0);
};

template <class T, int kWidth>
__global__ void __launch_bounds__(GradKeysShape<kWidth>::kThreads, 2)
    grad_keys_kernel(AttentionGradients<T> a) {
  using S = GradKeysShape<kWidth>;
  constexpr int kPieces = S::kQueries / 8;
  const int h = static_cast<int>(blockIdx.y) / S::kParts;
  const int part = static_cast<int>(blockIdx.y) % S::kParts;
  const int heads = static_cast<int>(gridDim.y) / S::kParts;
  const int b = static_cast<int>(blockIdx.z);
  const int first_key = static_cast<int>(blockIdx.x) * S::kKeys;
  const int first_row = warp_of_thread() * 16;
  const int keys = a.visible.keys_of(b);
  const float2* terms = a.terms + (int64_t{b} * heads + h) * a.padded;
  const uint8_t* mask = a.visible.of(b, h);
  if (mask != nullptr) mask += blockIdx.x;
  const int tiles = first_key < keys ? (a.queries + S::kQueries - 1) / S::kQueries : 0;
  const auto next_visible = [&](int tile) {
    constexpr int kTilesOfBlock = static_cast<int>(kMaskQueries) / S::kQueries;
    while (mask != nullptr && tile < tiles &&
           mask[static_cast<int64_t>(tile / kTilesOfBlock) * a.visible.columns] == 0) {
      ++tile;
    }
    return tile;
  };

  const uint32_t k_tile = shared_address(dynamic_shared<char>());
  const uint32_t v_tile = k_tile + S::Keys::kBytes;
  const uint32_t stages = v_tile + S::Keys::kBytes;
  const auto load_stage = [&](int tile, int stage) {
    const uint32_t to = stages + static_cast<uint32_t>(stage) * S::kStageBytes;
    const int first_query = tile * S::kQueries;
    load_tile<typename S::Queries, S::kThreads>(to, a.q.head(b, h), first_query, a.queries,
                                                a.width);
    load_tile<typename S::Queries, S::kThreads>(to + S::Queries::kBytes, a.grad_out.head(b, h),
                                                first_query, a.queries, a.width);
    if (threadIdx.x < S::kTermBytes / 16) {
      copy_async(to + 2 * S::Queries::kBytes + 16 * threadIdx.x,
                 terms + first_query + 2 * threadIdx.x, true);
    }
  };

  const float factor = a.scale * kLog2E;
  float grad_k[1][S::kColumns / 8][4];
  float grad_v[1][S::kColumns / 8][4];
  set_zero(grad_k[0]);
  set_zero(grad_v[0]);
  int tile = next_visible(0);
  int stage = 0;
  if (tile < tiles) {
    load_tile<typename S::Keys, S::kThreads>(k_tile, a.k.head(b, h), first_key, keys, a.width);
    load_tile<typename S::Keys, S::kThreads>(v_tile, a.v.head(b, h), first_key, keys, a.width);
    load_stage(tile, stage);
  }
  commit_copies();
  while (tile < tiles) {
    wait_for_copies<0>();
    __syncthreads();  // this stage has arrived, and the other is no longer needed
    const uint32_t q_tile = stages + static_cast<uint32_t>(stage) * S::kStageBytes;
    const uint32_t grad_tile = q_tile + S::Queries::kBytes;
    const auto* stage_terms =
        reinterpret_cast<const float4*>(dynamic_shared<char>() + 2 * S::Keys::kBytes +
                                        stage * S::kStageBytes + 2 * S::Queries::kBytes);
    tile = next_visible(tile + 1);
    stage ^= 1;
    if (tile < tiles) load_stage(tile, stage);
    commit_copies();

    float weights[1][kPieces][4];  // keys by queries
    set_zero(weights[0]);
    multiply_rows_by_rows<T, typename S::Keys, typename S::Queries>(weights, k_tile, first_row,
                                                                    q_tile);
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      const float4 pair = stage_terms[4 * n + lane_of_thread() % 4];
      weights[0][n][0] = weight_of(weights[0][n][0], factor, pair.x);
      weights[0][n][1] = weight_of(weights[0][n][1], factor, pair.z);
      weights[0][n][2] = weight_of(weights[0][n][2], factor, pair.x);
      weights[0][n][3] = weight_of(weights[0][n][3], factor, pair.z);
    }
    uint32_t left[1][kPieces / 2][4];
    round_left<T>(left[0], weights[0]);
    multiply_registers<T, typename S::Queries>(grad_v, left, grad_tile, part * S::kColumns / 8);

    float grads[1][kPieces][4];
    set_zero(grads[0]);
    multiply_rows_by_rows<T, typename S::Keys, typename S::Queries>(grads, v_tile, first_row,
                                                                    grad_tile);
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      const float4 pair = stage_terms[4 * n + lane_of_thread() % 4];
      grads[0][n][0] = weights[0][n][0] * (grads[0][n][0] - pair.y);
      grads[0][n][1] = weights[0][n][1] * (grads[0][n][1] - pair.w);
      grads[0][n][2] = weights[0][n][2] * (grads[0][n][2] - pair.y);
      grads[0][n][3] = weights[0][n][3] * (grads[0][n][3] - pair.w);
    }
    round_left<T>(left[0], grads[0]);
    multiply_registers<T, typename S::Queries>(grad_k, left, q_tile, part * S::kColumns / 8);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first_key + first_row + 8 * half + lane_of_thread() / 4;
    if (key >= a.visible.keys) continue;
    const bool seen = key < keys;
#pragma unroll
    for (int n = 0; n < S::kColumns / 8; ++n) {
      const int column = part * S::kColumns + 8 * n + lane_of_thread() % 4 * 2;
      if (column >= a.width) continue;
      const float* k = &grad_k[0][n][2 * half];
      const float* v = &grad_v[0][n][2 * half];
      a.grad_k.store(b, h, key, column, seen ? k[0] * a.scale : 0.0f, seen ? k[1] * a.scale : 0.0f);
      a.grad_v.store(b, h, key, column, seen ? v[0] : 0.0f, seen ? v[1] : 0.0f);
    }
  }
}

}  // namespace vidgen::cuda
