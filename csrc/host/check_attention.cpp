// The checks the arguments of attention and merge pass before memory is touched.
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "vidgen/attention.h"
#include "vidgen/ops.h"

namespace vidgen {
namespace {

[[noreturn]] void refuse(const char* tensor, const std::string& why) {
  throw std::invalid_argument(std::string(tensor) + ": " + why);
}

std::string text_of(const int64_t* sizes, int dims) {
  std::string text = "(";
  for (int i = 0; i < dims; ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

void expect_shape(const char* name, const TensorView& view, std::initializer_list<int64_t> shape) {
  bool same = view.dims == static_cast<int>(shape.size());
  for (int i = 0; same && i < view.dims; ++i) same = view.size[i] == shape.begin()[i];
  if (!same) {
    refuse(name, "has shape " + text_of(view.size, view.dims) + ", expected " +
                     text_of(shape.begin(), static_cast<int>(shape.size())));
  }
  if (view.data == nullptr && view.elements() > 0) refuse(name, "has no storage");
}

void expect_type(const char* name, const TensorView& view, DType one, DType other) {
  if (view.dtype != one && view.dtype != other) refuse(name, "has another element type");
}

void expect_contiguous(const char* name, const TensorView& view) {
  int64_t expected = 1;
  for (int i = view.dims - 1; i >= 0 && view.elements() > 0; --i) {
    if (view.size[i] > 1 && view.stride[i] != expected) refuse(name, "is not contiguous");
    expected *= view.size[i];
  }
}

// (B, L, H, D), rows contiguous
void expect_heads(const char* name, const TensorView& view, const TensorView& model, int64_t length,
                  DType one, DType other) {
  expect_shape(name, view, {model.size[0], length, model.size[2], model.size[3]});
  expect_type(name, view, one, other);
  if (view.size[3] > 1 && view.stride[3] != 1 && view.elements() > 0) {
    refuse(name, "is not contiguous in its last dimension");
  }
}

// (B, H, M) float32
void expect_sums(const char* name, const TensorView& view, const TensorView& q) {
  expect_shape(name, view, {q.size[0], q.size[2], q.size[1]});
  expect_type(name, view, DType::f32, DType::f32);
  expect_contiguous(name, view);
}

void expect_float(const char* name, const TensorView& view) {
  if (view.dtype == DType::u8 || view.dtype == DType::i32) refuse(name, "is not floating-point");
}

void expect_queries_and_keys(const TensorView& q, const TensorView& k, const TensorView& v,
                             const TensorView& key_lengths, const TensorView& blocks) {
  if (q.dims != 4) refuse("q", "has shape " + text_of(q.size, q.dims) + ", expected (B, M, H, D)");
  expect_float("q", q);
  if (q.size[3] < 1 || q.size[3] > kMaxHeadWidth) {
    refuse("q", "has heads of width " + std::to_string(q.size[3]) + ", expected 1 to " +
                    std::to_string(kMaxHeadWidth));
  }
  expect_heads("q", q, q, q.size[1], q.dtype, q.dtype);
  if (k.dims != 4) refuse("k", "has shape " + text_of(k.size, k.dims) + ", expected (B, N, H, D)");
  expect_heads("k", k, q, k.size[1], q.dtype, q.dtype);
  expect_heads("v", v, q, k.size[1], q.dtype, q.dtype);
  if (key_lengths.dims != 0) {
    expect_shape("key_lengths", key_lengths, {q.size[0]});
    expect_type("key_lengths", key_lengths, DType::i32, DType::i32);
    expect_contiguous("key_lengths", key_lengths);
  }
  if (blocks.dims != 0) {
    const int64_t samples = blocks.size[0] == 1 ? 1 : q.size[0];
    const int64_t heads = blocks.size[1] == 1 ? 1 : q.size[2];
    const int64_t rows = (q.size[1] + kMaskQueries - 1) / kMaskQueries;
    const int64_t columns = (k.size[1] + kMaskKeys - 1) / kMaskKeys;
    expect_shape("blocks", blocks, {samples, heads, rows, columns});
    expect_type("blocks", blocks, DType::u8, DType::u8);
    expect_contiguous("blocks", blocks);
  }
}

}  // namespace

void check(const AttentionForward& a) {
  expect_queries_and_keys(a.q, a.k, a.v, a.key_lengths, a.blocks);
  expect_heads("out", a.out, a.q, a.q.size[1], a.q.dtype, DType::f32);
  expect_sums("lse", a.lse, a.q);
}

void check(const AttentionBackward& a) {
  expect_queries_and_keys(a.q, a.k, a.v, a.key_lengths, a.blocks);
  const int64_t queries = a.q.size[1], keys = a.k.size[1];
  expect_heads("out", a.out, a.q, queries, a.q.dtype, DType::f32);
  expect_sums("lse", a.lse, a.q);
  expect_heads("grad_out", a.grad_out, a.q, queries, a.q.dtype, DType::f32);
  if (a.grad_lse.dims != 0) expect_sums("grad_lse", a.grad_lse, a.q);
  expect_heads("grad_q", a.grad_q, a.q, queries, a.q.dtype, DType::f32);
  expect_heads("grad_k", a.grad_k, a.q, keys, a.q.dtype, DType::f32);
  expect_heads("grad_v", a.grad_v, a.q, keys, a.grad_k.dtype, a.grad_k.dtype);
}

void check(const MergeForward& a) {
  if (a.out_a.dims != 4) refuse("out_a", "is not (B, M, H, D)");
  const int64_t length = a.out_a.size[1];
  expect_heads("out_a", a.out_a, a.out_a, length, DType::f32, DType::f32);
  expect_sums("lse_a", a.lse_a, a.out_a);
  expect_float("out_b", a.out_b);
  expect_heads("out_b", a.out_b, a.out_a, length, a.out_b.dtype, a.out_b.dtype);
  expect_sums("lse_b", a.lse_b, a.out_a);
  expect_heads("out", a.out, a.out_a, length, DType::f32, DType::f32);
  expect_sums("lse", a.lse, a.out_a);
}

void check(const MergeBackward& a) {
  if (a.grad_out.dims != 4) refuse("grad_out", "is not (B, M, H, D)");
  const int64_t length = a.grad_out.size[1];
  expect_heads("grad_out", a.grad_out, a.grad_out, length, DType::f32, DType::f32);
  expect_sums("grad_lse", a.grad_lse, a.grad_out);
  expect_heads("out_a", a.out_a, a.grad_out, length, DType::f32, DType::f32);
  expect_sums("lse_a", a.lse_a, a.grad_out);
  expect_float("out_b", a.out_b);
  expect_heads("out_b", a.out_b, a.grad_out, length, a.out_b.dtype, a.out_b.dtype);
  expect_sums("lse_b", a.lse_b, a.grad_out);
  expect_heads("grad_out_a", a.grad_out_a, a.grad_out, length, DType::f32, DType::f32);
  expect_sums("grad_lse_a", a.grad_lse_a, a.grad_out);
  expect_heads("grad_out_b", a.grad_out_b, a.grad_out, length, a.out_b.dtype, a.out_b.dtype);
  expect_sums("grad_lse_b", a.grad_lse_b, a.grad_out);
}

}  // namespace vidgen
