// The checks every kernel's arguments pass before memory is touched.
#include <stdexcept>
#include <string>

#include "vidgen/ops.h"

namespace vidgen {
namespace {

[[noreturn]] void refuse(const char* tensor, const std::string& why) {
  throw std::invalid_argument(std::string(tensor) + ": " + why);
}

std::string shape_of(const TensorView& view) {
  std::string text = "(";
  for (int i = 0; i < view.dims; ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(view.size[i]);
  }
  return text + ")";
}

void expect_dims(const char* name, const TensorView& view, int dims) {
  if (view.dims != dims) {
    refuse(name,
           "has " + std::to_string(view.dims) + " dimensions, expected " + std::to_string(dims));
  }
}

void expect_same_shape(const char* name, const TensorView& view, const TensorView& model) {
  bool same = view.dims == model.dims;
  for (int i = 0; same && i < view.dims; ++i) same = view.size[i] == model.size[i];
  if (!same) refuse(name, "has shape " + shape_of(view) + ", expected " + shape_of(model));
}

void expect_type(const char* name, const TensorView& view, DType dtype) {
  if (view.dtype != dtype) refuse(name, "has another element type than expected");
}

void expect_float(const char* name, const TensorView& view) {
  if (view.dtype == DType::u8 || view.dtype == DType::i32)
    refuse(name, "is not of a floating-point type");
}

void expect_rows(const char* name, const TensorView& view) {
  const int last = view.dims - 1;
  if (view.size[last] > 1 && view.stride[last] != 1 && view.elements() > 0) {
    refuse(name, "is not contiguous in its last dimension");
  }
}

void expect_contiguous(const char* name, const TensorView& view) {
  if (view.elements() == 0) return;
  int64_t expected = 1;
  for (int i = view.dims - 1; i >= 0; --i) {
    if (view.size[i] > 1 && view.stride[i] != expected) refuse(name, "is not contiguous");
    expected *= view.size[i];
  }
}

void expect_data(const char* name, const TensorView& view) {
  if (view.data == nullptr && view.elements() > 0) refuse(name, "has no storage");
}

// A (B, L, D) or (B, L, H, D) tensor that sets the shape and type of the others.
void expect_tokens(const char* name, const TensorView& view, int dims) {
  expect_dims(name, view, dims);
  expect_float(name, view);
  expect_rows(name, view);
  expect_data(name, view);
  if (view.size[dims - 1] == 0) refuse(name, "has no features");
}

void expect_tokens_like(const char* name, const TensorView& view, const TensorView& model) {
  expect_same_shape(name, view, model);
  expect_type(name, view, model.dtype);
  expect_rows(name, view);
  expect_data(name, view);
}

// (B, D) beside tokens (B, L, D)
void expect_vectors(const char* name, const TensorView& view, const TensorView& tokens) {
  if (view.dims != 2 || view.size[0] != tokens.size[0] || view.size[1] != tokens.size[2]) {
    refuse(name, "has shape " + shape_of(view) + ", expected (" + std::to_string(tokens.size[0]) +
                     ", " + std::to_string(tokens.size[2]) + ")");
  }
  expect_float(name, view);
  expect_rows(name, view);
  expect_data(name, view);
}

void expect_vector_grad(const char* name, const TensorView& view, const TensorView& tokens) {
  expect_vectors(name, view, tokens);
  expect_type(name, view, DType::f32);
  expect_contiguous(name, view);
}

// (B, L) float32 beside tokens (B, L, D)
void expect_statistics(const char* name, const TensorView& view, const TensorView& tokens) {
  if (view.dims != 2 || view.size[0] != tokens.size[0] || view.size[1] != tokens.size[1]) {
    refuse(name, "has shape " + shape_of(view) + ", expected (" + std::to_string(tokens.size[0]) +
                     ", " + std::to_string(tokens.size[1]) + ")");
  }
  expect_type(name, view, DType::f32);
  expect_contiguous(name, view);
  expect_data(name, view);
}

// A short contiguous vector that the host reads.
void expect_host_values(const char* name, const TensorView& view, DType dtype, int64_t count) {
  if (view.dims != 1 || view.size[0] != count) {
    refuse(name, "has shape " + shape_of(view) + ", expected (" + std::to_string(count) + ")");
  }
  expect_type(name, view, dtype);
  expect_contiguous(name, view);
  expect_data(name, view);
}

void expect_head_vector(const char* name, const TensorView& view, int64_t width) {
  if (view.dims != 1 || view.size[0] != width) {
    refuse(name, "has shape " + shape_of(view) + ", expected (" + std::to_string(width) + ")");
  }
  expect_float(name, view);
  expect_rows(name, view);
  expect_data(name, view);
}

void expect_angles(const char* name, const TensorView& view, const TensorView& q) {
  const int64_t pairs = q.size[3] / 2;
  if (view.dims != 2 || view.size[0] != q.size[1] || view.size[1] != pairs) {
    refuse(name, "has shape " + shape_of(view) + ", expected (" + std::to_string(q.size[1]) + ", " +
                     std::to_string(pairs) + ")");
  }
  expect_type(name, view, DType::f32);
  expect_contiguous(name, view);
  expect_data(name, view);
}

void expect_heads(const char* name, const TensorView& view) {
  expect_tokens(name, view, 4);
  const int64_t width = view.size[3];
  if (width % 2 != 0 || width > kMaxHeadWidth) {
    refuse(name, "has heads of width " + std::to_string(width) + ", expected an even width up to " +
                     std::to_string(kMaxHeadWidth));
  }
}

}  // namespace

void check(const ModulateForward& a) {
  expect_tokens("x", a.x, 3);
  expect_vectors("shift", a.shift, a.x);
  expect_vectors("scale", a.scale, a.x);
  expect_tokens_like("out", a.out, a.x);
  expect_statistics("mean", a.mean, a.x);
  expect_statistics("rstd", a.rstd, a.x);
}

void check(const ModulateBackward& a) {
  expect_tokens("x", a.x, 3);
  expect_tokens_like("grad_out", a.grad_out, a.x);
  expect_vectors("scale", a.scale, a.x);
  expect_statistics("mean", a.mean, a.x);
  expect_statistics("rstd", a.rstd, a.x);
  expect_tokens_like("grad_x", a.grad_x, a.x);
  expect_vector_grad("grad_shift", a.grad_shift, a.x);
  expect_vector_grad("grad_scale", a.grad_scale, a.x);
}

void check(const GatedResidualForward& a) {
  expect_tokens("x", a.x, 3);
  expect_tokens_like("y", a.y, a.x);
  expect_vectors("gate", a.gate, a.x);
  expect_tokens_like("out", a.out, a.x);
}

void check(const GatedResidualBackward& a) {
  expect_tokens("y", a.y, 3);
  expect_tokens_like("grad_out", a.grad_out, a.y);
  expect_vectors("gate", a.gate, a.y);
  expect_tokens_like("grad_y", a.grad_y, a.y);
  expect_vector_grad("grad_gate", a.grad_gate, a.y);
}

void check(const GatedResidualModulateForward& a) {
  expect_tokens("x", a.x, 3);
  expect_tokens_like("y", a.y, a.x);
  expect_vectors("gate", a.gate, a.x);
  expect_vectors("shift", a.shift, a.x);
  expect_vectors("scale", a.scale, a.x);
  expect_tokens_like("residual", a.residual, a.x);
  expect_tokens_like("out", a.out, a.x);
  expect_statistics("mean", a.mean, a.x);
  expect_statistics("rstd", a.rstd, a.x);
}

void check(const GatedResidualModulateBackward& a) {
  expect_tokens("residual", a.residual, 3);
  expect_tokens_like("grad_residual", a.grad_residual, a.residual);
  expect_tokens_like("grad_out", a.grad_out, a.residual);
  expect_tokens_like("y", a.y, a.residual);
  expect_vectors("gate", a.gate, a.residual);
  expect_vectors("scale", a.scale, a.residual);
  expect_statistics("mean", a.mean, a.residual);
  expect_statistics("rstd", a.rstd, a.residual);
  expect_tokens_like("grad_x", a.grad_x, a.residual);
  expect_tokens_like("grad_y", a.grad_y, a.residual);
  expect_vector_grad("grad_gate", a.grad_gate, a.residual);
  expect_vector_grad("grad_shift", a.grad_shift, a.residual);
  expect_vector_grad("grad_scale", a.grad_scale, a.residual);
}

void check(const QkNormRopeForward& a) {
  expect_heads("q", a.q);
  expect_tokens_like("k", a.k, a.q);
  expect_head_vector("q_scale", a.q_scale, a.q.size[3]);
  expect_head_vector("k_scale", a.k_scale, a.q.size[3]);
  expect_angles("cos", a.cos, a.q);
  expect_angles("sin", a.sin, a.q);
  expect_tokens_like("q_out", a.q_out, a.q);
  expect_tokens_like("k_out", a.k_out, a.q);
}

void check(const QkNormRopeBackward& a) {
  expect_heads("q", a.q);
  expect_tokens_like("k", a.k, a.q);
  expect_tokens_like("grad_q_out", a.grad_q_out, a.q);
  expect_tokens_like("grad_k_out", a.grad_k_out, a.q);
  expect_head_vector("q_scale", a.q_scale, a.q.size[3]);
  expect_head_vector("k_scale", a.k_scale, a.q.size[3]);
  expect_angles("cos", a.cos, a.q);
  expect_angles("sin", a.sin, a.q);
  expect_tokens_like("grad_q", a.grad_q, a.q);
  expect_tokens_like("grad_k", a.grad_k, a.q);
  expect_head_vector("grad_q_scale", a.grad_q_scale, a.q.size[3]);
  expect_type("grad_q_scale", a.grad_q_scale, DType::f32);
  expect_head_vector("grad_k_scale", a.grad_k_scale, a.q.size[3]);
  expect_type("grad_k_scale", a.grad_k_scale, DType::f32);
}

void check(const GeluTanhForward& a) {
  expect_tokens("x", a.x, 3);
  expect_tokens_like("out", a.out, a.x);
}

void check(const GeluTanhBackward& a) {
  expect_tokens("x", a.x, 3);
  expect_tokens_like("grad_out", a.grad_out, a.x);
  expect_tokens_like("grad_x", a.grad_x, a.x);
}

void check(const CopyRows& a) {
  expect_tokens("x", a.x, 4);
  expect_tokens_like("out", a.out, a.x);
}

void check(const AdamwForward& a) {
  expect_tokens("param", a.param, 3);
  expect_type("param", a.param, DType::f32);
  expect_tokens_like("grad", a.grad, a.param);
  if (a.exp_avg.dtype != DType::f32 && a.exp_avg.dtype != DType::bf16) {
    refuse("exp_avg", "is neither float32 nor bfloat16");
  }
  expect_same_shape("exp_avg", a.exp_avg, a.param);
  expect_rows("exp_avg", a.exp_avg);
  expect_data("exp_avg", a.exp_avg);
  expect_tokens_like("exp_avg_sq", a.exp_avg_sq, a.exp_avg);
  if (a.average.data != nullptr) expect_tokens_like("average", a.average, a.param);
  expect_host_values("settings", a.settings, DType::f32, 8);
  expect_host_values("place", a.place, DType::i32, 4);
}

void check(const VideoToInput& a) {
  expect_dims("frames", a.frames, 5);
  expect_type("frames", a.frames, DType::u8);
  const int64_t channels = a.frames.size[4];
  if (a.frames.size[3] > 1 && a.frames.stride[3] != channels) {
    refuse("frames", "has pixels that do not follow one another");
  }
  expect_rows("frames", a.frames);
  expect_data("frames", a.frames);
  expect_dims("table", a.table, 2);
  if (a.table.size[0] != channels || a.table.size[1] != 256) {
    refuse("table",
           "has shape " + shape_of(a.table) + ", expected (" + std::to_string(channels) + ", 256)");
  }
  expect_float("table", a.table);
  expect_contiguous("table", a.table);
  expect_data("table", a.table);
  expect_dims("flip", a.flip, 1);
  expect_type("flip", a.flip, DType::u8);
  expect_contiguous("flip", a.flip);
  expect_data("flip", a.flip);
  if (a.flip.size[0] != a.frames.size[0]) refuse("flip", "is not one number a sample");
  TensorView expected = a.frames;
  expected.size[1] = channels;
  for (int i = 2; i < 5; ++i) expected.size[i] = a.frames.size[i - 1];
  expect_same_shape("out", a.out, expected);
  expect_type("out", a.out, a.table.dtype);
  expect_contiguous("out", a.out);
  expect_data("out", a.out);
}

}  // namespace vidgen
