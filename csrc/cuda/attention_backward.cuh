// Shared by the three kernels of attention's backward pass.
//
// First each query's terms are computed (attention_terms.cuh). Then one kernel owns keys and loops
// over queries (attention_grad_keys.cuh), another owns queries and loops over keys
// (attention_grad_queries.cuh). The scores are computed twice so that every sum has one owner: no
// atomics, and deterministic results.
#pragma once

#include "cuda/attention_tiles.cuh"

namespace vidgen::cuda {

// The rows of terms of a head are padded to whole blocks of queries.
inline int64_t padded_queries(int64_t queries) {
  return (queries + kMaskQueries - 1) / kMaskQueries * kMaskQueries;
}

template <class T>
struct AttentionGradients {
  HeadsOf<const T> q, k, v, grad_out;
  // Of a query: log2(e) * lse, +infinity where it sees nothing; and the sum of out * grad_out less
  // the gradient of lse. (B, H, padded queries)
  const float2* terms;
  Results<T> grad_q, grad_k, grad_v;
  Visible visible;
  int queries, padded, width;
  float scale;
};

// weight = exp2(factor * score - lse term); its gradient is weight * (grad_weight - sum term).
__device__ __forceinline__ float weight_of(float score, float factor, float lse) {
  return exp2_fast(score * factor - lse);
}

}  // namespace vidgen::cuda
