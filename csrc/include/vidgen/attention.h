// Attention and the merging of its parts: argument structs, the same on the CPU and on the GPU.
//
// B samples, H heads, D features of a head, M queries, N keys. q, k, v, out and their gradients are
// (B, length, H, D) with any strides but contiguous in the last dimension, of one storage type
// unless said otherwise; arithmetic is float32. An absent tensor has dims == 0.
//
// A query sees a key that lies below its sample's length and in a block that is set. One that sees
// no key has output 0, log-sum-exp -infinity and gradient 0. NaN spreads where it is seen.
// Masked blocks cost nothing. Results have the same bits whatever the number of threads.
#pragma once

#include "vidgen/tensor_view.h"

namespace vidgen {

// Queries and keys of one block of a mask.
constexpr int64_t kMaskQueries = 128;
constexpr int64_t kMaskKeys = 64;

// lse = log sum exp(scale * q k'), out = exp(scale * q k' - lse) v
struct AttentionForward {
  TensorView q;            // (B, M, H, D)
  TensorView k, v;         // (B, N, H, D)
  TensorView key_lengths;  // (B) int32 contiguous, or absent: all N; above N counts as N
  TensorView blocks;  // (B or 1, H or 1, ceil(M / 128), ceil(N / 64)) uint8 contiguous, or absent
  TensorView out;     // (B, M, H, D) in the type of q or float32
  TensorView lse;     // (B, H, M) float32 contiguous
  float scale;
};

// out and lse may be those over more keys than are given here (the parts of a ring): the gradients
// are then the parts of these keys.
struct AttentionBackward {
  TensorView q, k, v;              // as they were
  TensorView key_lengths, blocks;  // as they were
  TensorView out;                  // (B, M, H, D) in the type of q or float32
  TensorView lse;                  // (B, H, M) float32 contiguous
  TensorView grad_out;             // (B, M, H, D) in the type of q or float32
  TensorView grad_lse;             // (B, H, M) float32 contiguous, or absent: zeros
  TensorView grad_q;               // (B, M, H, D) in the type of q or float32
  TensorView grad_k, grad_v;       // (B, N, H, D) in the type of q or float32, both the same
  float scale;
};

// Attention over the union of two sets of keys. out and lse may be out_a and lse_a themselves.
struct MergeForward {
  TensorView out_a;  // (B, M, H, D) float32
  TensorView lse_a;  // (B, H, M) float32 contiguous
  TensorView out_b;  // (B, M, H, D) float32, bfloat16 or float16
  TensorView lse_b;  // (B, H, M) float32 contiguous
  TensorView out;    // (B, M, H, D) float32
  TensorView lse;    // (B, H, M) float32 contiguous
};

// out_a and lse_a as they were before the merge.
struct MergeBackward {
  TensorView grad_out;    // (B, M, H, D) float32
  TensorView grad_lse;    // (B, H, M) float32 contiguous
  TensorView out_a;       // (B, M, H, D) float32
  TensorView lse_a;       // (B, H, M) float32 contiguous
  TensorView out_b;       // (B, M, H, D) float32, bfloat16 or float16
  TensorView lse_b;       // (B, H, M) float32 contiguous
  TensorView grad_out_a;  // (B, M, H, D) float32
  TensorView grad_lse_a;  // (B, H, M) float32 contiguous
  TensorView grad_out_b;  // (B, M, H, D) in the type of out_b
  TensorView grad_lse_b;  // (B, H, M) float32 contiguous
};

}  // namespace vidgen
