// The list of kernels, VIDGEN_FOR_EACH_KERNEL, and their argument structs, the same on the CPU and
// on the GPU. A line of the list declares a kernel's check, its CPU and its CUDA function, and
// binds both for Python; attention's structs are in attention.h.
//
// B samples, L tokens, D features, H heads, P = D / 2 rotation pairs of a head, C channels,
// T frames, H x W pixels. Storage is float32, bfloat16 or float16; arithmetic is float32.
// Token tensors may have any strides over batch, tokens and heads but are contiguous in the
// last dimension. Per-sample vectors may be of another storage type than the tokens.
// Sums over tokens add the same numbers in the same order whatever the number of threads.
#pragma once

#include "vidgen/attention.h"
#include "vidgen/tensor_view.h"

namespace vidgen {

constexpr int64_t kMaxHeadWidth = 256;

// out = (1 + scale) * (x - mean) * rstd + shift
struct ModulateForward {
  TensorView x;             // (B, L, D)
  TensorView shift, scale;  // (B, D)
  TensorView out;           // (B, L, D)
  TensorView mean, rstd;    // (B, L) float32, contiguous
  float eps;
};

struct ModulateBackward {
  TensorView grad_out, x;             // (B, L, D)
  TensorView scale;                   // (B, D)
  TensorView mean, rstd;              // (B, L) float32, contiguous
  TensorView grad_x;                  // (B, L, D)
  TensorView grad_shift, grad_scale;  // (B, D) float32, contiguous
};

// out = x + gate * y
struct GatedResidualForward {
  TensorView x, y;  // (B, L, D)
  TensorView gate;  // (B, D)
  TensorView out;   // (B, L, D)
};

// The gradient of x is grad_out itself.
struct GatedResidualBackward {
  TensorView grad_out, y;  // (B, L, D)
  TensorView gate;         // (B, D)
  TensorView grad_y;       // (B, L, D)
  TensorView grad_gate;    // (B, D) float32, contiguous
};

// residual = x + gate * y, stored; out = modulate(residual as stored)
struct GatedResidualModulateForward {
  TensorView x, y;                // (B, L, D)
  TensorView gate, shift, scale;  // (B, D)
  TensorView residual, out;       // (B, L, D)
  TensorView mean, rstd;          // (B, L) float32, contiguous
  float eps;
};

struct GatedResidualModulateBackward {
  TensorView grad_residual, grad_out;            // (B, L, D)
  TensorView residual, y;                        // (B, L, D)
  TensorView gate, scale;                        // (B, D)
  TensorView mean, rstd;                         // (B, L) float32, contiguous
  TensorView grad_x, grad_y;                     // (B, L, D)
  TensorView grad_gate, grad_shift, grad_scale;  // (B, D) float32, contiguous
};

// Of every head: RMS norm, times scale, then pair (j, j + P) turned by the angle (l, j).
struct QkNormRopeForward {
  TensorView q, k;              // (B, L, H, D)
  TensorView q_scale, k_scale;  // (D)
  TensorView cos, sin;          // (L, P) float32, contiguous
  TensorView q_out, k_out;      // (B, L, H, D)
  float eps;
};

struct QkNormRopeBackward {
  TensorView grad_q_out, grad_k_out;      // (B, L, H, D)
  TensorView q, k;                        // (B, L, H, D)
  TensorView q_scale, k_scale;            // (D)
  TensorView cos, sin;                    // (L, P) float32, contiguous
  TensorView grad_q, grad_k;              // (B, L, H, D)
  TensorView grad_q_scale, grad_k_scale;  // (D) float32, contiguous
  float eps;
};

struct GeluTanhForward {
  TensorView x, out;  // (B, L, D)
};

struct GeluTanhBackward {
  TensorView grad_out, x, grad_x;  // (B, L, D)
};

// out = x: how tokens get from one strided tensor into a part of another
struct CopyRows {
  TensorView x, out;  // (B, L, H, D)
};

// out[b, c, t, h, w] = table[c, frames[b, t, h, w, c]], mirrored along w where flip[b] is not 0
struct VideoToInput {
  TensorView frames;  // (B, T, H, W, C) uint8, contiguous in the last two dimensions
  TensorView table;   // (C, 256) in the type of out, contiguous
  TensorView flip;    // (B) uint8, contiguous
  TensorView out;     // (B, C, T, H, W) contiguous
};

// One step of AdamW in place, in float32 whatever the moments are kept in. Moments in bfloat16 are
// rounded up or down at random, with the odds that keep the mean: to the nearest, a second moment
// that changes by a thousandth would never move. The random bits are a hash of (key, place of the
// element in the whole tensor), so they are the same however the tensor is divided.
struct AdamwForward {
  TensorView param, grad;          // (1, L, D) float32
  TensorView exp_avg, exp_avg_sq;  // (1, L, D), both float32 or both bfloat16
  TensorView average;              // (1, L, D) float32: the moving average of param, or absent
  TensorView settings;             // (8) float32 in host memory, see AdamwNumbers
  TensorView place;                // (4) int32 in host memory, see AdamwPlace
};

// What `settings` holds.
struct AdamwNumbers {
  float keep;       // of param: 1 - lr * weight decay
  float rate1;      // 1 - beta1
  float beta2;      //
  float rate2;      // 1 - beta2
  float eps;        //
  float step_size;  // lr / (1 - beta1^step)
  float root;       // 1 / sqrt(1 - beta2^step)
  float follow;     // average += follow * (param - average)
};

// What `place` holds: element (l, d) is number first + l * row + d of the whole tensor, mod 2^32.
struct AdamwPlace {
  uint32_t key[2];
  uint32_t first, row;
};

// X(kernel name, argument struct)
#define VIDGEN_FOR_EACH_KERNEL(X)                                    \
  X(modulate_forward, ModulateForward)                               \
  X(modulate_backward, ModulateBackward)                             \
  X(gated_residual_forward, GatedResidualForward)                    \
  X(gated_residual_backward, GatedResidualBackward)                  \
  X(gated_residual_modulate_forward, GatedResidualModulateForward)   \
  X(gated_residual_modulate_backward, GatedResidualModulateBackward) \
  X(qk_norm_rope_forward, QkNormRopeForward)                         \
  X(qk_norm_rope_backward, QkNormRopeBackward)                       \
  X(gelu_tanh_forward, GeluTanhForward)                              \
  X(gelu_tanh_backward, GeluTanhBackward)                            \
  X(copy_rows_forward, CopyRows)                                     \
  X(video_to_input_forward, VideoToInput)                            \
  X(adamw_forward, AdamwForward)                                     \
  X(attention_forward, AttentionForward)                             \
  X(attention_backward, AttentionBackward)                           \
  X(merge_forward, MergeForward)                                     \
  X(merge_backward, MergeBackward)

// Throw std::invalid_argument, naming the tensor, when shapes, types or strides do not fit.
#define VIDGEN_DECLARE(name, Args) void check(const Args& args);
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DECLARE)
#undef VIDGEN_DECLARE

namespace cpu {

// Each checks its arguments, then runs on at most `threads` threads.
#define VIDGEN_DECLARE(name, Args) void name(const Args& args, int threads);
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DECLARE)
#undef VIDGEN_DECLARE

}  // namespace cpu

namespace cuda {

// Device memory a kernel needs beside its arguments, and the stream (a cudaStream_t) it runs on.
struct Launch {
  void* stream = nullptr;
  float* workspace = nullptr;
};

// Each checks its arguments, then launches on the current device.
#define VIDGEN_DECLARE(name, Args)            \
  int64_t name##_workspace(const Args& args); \
  void name(const Args& args, const Launch& launch);
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DECLARE)
#undef VIDGEN_DECLARE

}  // namespace cuda
}  // namespace vidgen
