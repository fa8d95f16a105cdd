// Attention and merge of every variant this CPU can run, against the definition in double, by the
// error rule (see check.h).
#include <limits>
#include <stdexcept>

#include "check.h"

namespace vidgen::test {
namespace {

using Doubles = std::vector<double>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Problem {
  const cpu::Variant* variant;
  DType dtype;
  int64_t b, queries, keys, h, d;
  bool masked;
  std::string name;
};

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

template <class T>
TensorView view_of(std::vector<T>& memory, DType dtype, std::vector<int64_t> shape) {
  TensorView view;
  view.data = memory.data();
  view.dtype = dtype;
  view.dims = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (int i = view.dims - 1; i >= 0; --i) {
    view.size[i] = shape[index(i)];
    view.stride[i] = stride;
    stride *= view.size[i];
  }
  return view;
}

// Half of the blocks, one row of them empty, and one sample without a key.
struct Mask {
  std::vector<int32_t> lengths;
  std::vector<uint8_t> blocks;
  int64_t rows, columns, heads, keys;
  bool present;

  Mask(const Problem& p, std::mt19937& random)
      : lengths(index(p.b)),
        rows((p.queries + kMaskQueries - 1) / kMaskQueries),
        columns((p.keys + kMaskKeys - 1) / kMaskKeys),
        heads(p.h),
        keys(p.keys),
        present(p.masked) {
    for (int64_t i = 0; i < p.b; ++i) {
      lengths[index(i)] = i == 1 ? 0 : static_cast<int32_t>(keys - (i == 2 ? keys / 3 : -5));
    }
    blocks.resize(index(heads * rows * columns));
    for (uint8_t& block : blocks) block = random() % 2;
    for (int64_t i = 0; i < columns; ++i) blocks[index(i)] = 0;
  }

  bool sees(int64_t b, int64_t h, int64_t query, int64_t key) const {
    if (!present) return true;
    const int64_t at = (h * rows + query / kMaskQueries) * columns + key / kMaskKeys;
    return key < lengths[index(b)] && blocks[index(at)] != 0;
  }

  TensorView lengths_view() {
    return present ? view_of(lengths, DType::i32, {int64_t(lengths.size())}) : TensorView{};
  }
  TensorView blocks_view() {
    return present ? view_of(blocks, DType::u8, {1, heads, rows, columns}) : TensorView{};
  }
};

struct Results {
  Doubles out, lse, grad_q, grad_k, grad_v;
};

// The definition in double or in float. `stored` rounds as a tensor between two operations does.
template <class Real, class Stored>
Results define(const Problem& p, const Mask& mask, const Tensor& q, const Tensor& k,
               const Tensor& v, const Tensor& out, const Tensor& grad_out, const Tensor& grad_lse,
               float given_scale, const Stored& stored) {
  const Real scale = given_scale, empty = -std::numeric_limits<Real>::infinity();
  const auto at = [](const Tensor& x, int64_t i) { return static_cast<Real>(x.at(i)); };
  const std::size_t queries = index(q.elements()), keys = index(k.elements());
  std::vector<Real> sum_out(queries), sum_q(queries), sum_k(keys), sum_v(keys);
  std::vector<Real> probs(index(p.keys)), grads(index(p.keys));
  Doubles log_sums(index(p.b * p.h * p.queries));
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.h; ++h)
      for (int64_t i = 0; i < p.queries; ++i) {
        const int64_t line = (b * p.h + h) * p.queries + i;
        const int64_t row = ((b * p.queries + i) * p.h + h) * p.d;
        const auto key_row = [&](int64_t j) { return ((b * p.keys + j) * p.h + h) * p.d; };
        Real total = 0, top = empty, level = -at(grad_lse, line);
        // The backward pass has the output as it is stored.
        for (int64_t c = 0; c < p.d; ++c) level += at(grad_out, row + c) * at(out, row + c);
        for (int64_t j = 0; j < p.keys; ++j) {
          Real score = 0;
          for (int64_t c = 0; c < p.d; ++c) score += at(q, row + c) * at(k, key_row(j) + c);
          probs[index(j)] = mask.sees(b, h, i, j) ? stored(score) * scale : empty;
          top = std::fmax(top, probs[index(j)]);
        }
        for (int64_t j = 0; j < p.keys && top > empty; ++j) {
          total += std::exp(probs[index(j)] - top);
        }
        const Real lse = top > empty ? top + std::log(total) : empty;
        log_sums[index(line)] = static_cast<double>(lse);
        if (top == empty) continue;
        for (int64_t j = 0; j < p.keys; ++j) {
          const Real prob = stored(std::exp(probs[index(j)] - lse));
          Real grad = 0;
          for (int64_t c = 0; c < p.d; ++c) {
            sum_out[index(row + c)] += prob * at(v, key_row(j) + c);
            sum_v[index(key_row(j) + c)] += prob * at(grad_out, row + c);
            grad += at(grad_out, row + c) * at(v, key_row(j) + c);
          }
          probs[index(j)] = prob;
          grads[index(j)] = stored(grad);
        }
        for (int64_t j = 0; j < p.keys; ++j) {
          const Real grad = stored(probs[index(j)] * (grads[index(j)] - level)) * scale;
          for (int64_t c = 0; c < p.d; ++c) {
            sum_q[index(row + c)] += grad * at(k, key_row(j) + c);
            sum_k[index(key_row(j) + c)] += grad * at(q, row + c);
          }
        }
      }
  const auto wide = [](const std::vector<Real>& x) { return Doubles(x.begin(), x.end()); };
  return {wide(sum_out), log_sums, wide(sum_q), wide(sum_k), wide(sum_v)};
}

void test_attention(const Problem& p, std::mt19937& random) {
  const auto at_queries = [&] { return Tensor({p.b, p.queries, p.h, p.d}, p.dtype, random); };
  const auto at_keys = [&] { return Tensor({p.b, p.keys, p.h, p.d}, p.dtype, random); };
  const auto sums = [&] { return Tensor({p.b, p.h, p.queries}, DType::f32, random); };
  Tensor q = at_queries(), k = at_keys(), v = at_keys(), out = at_queries(), lse = sums();
  Tensor grad_out = at_queries(), grad_lse = sums();
  Tensor grad_q = at_queries(), grad_k = at_keys(), grad_v = at_keys();
  Mask mask(p, random);
  const float scale = 1.0f / std::sqrt(static_cast<float>(p.d));
  const AttentionForward forward{q.view(),           k.view(),   v.view(),   mask.lengths_view(),
                                 mask.blocks_view(), out.view(), lse.view(), scale};
  const AttentionBackward backward{q.view(),
                                   k.view(),
                                   v.view(),
                                   mask.lengths_view(),
                                   mask.blocks_view(),
                                   out.view(),
                                   lse.view(),
                                   grad_out.view(),
                                   grad_lse.view(),
                                   grad_q.view(),
                                   grad_k.view(),
                                   grad_v.view(),
                                   scale};
  check(forward);
  check(backward);
  p.variant->attention_forward(forward, 3);
  p.variant->attention_backward(backward, 3);
  Results exact = define<double>(p, mask, q, k, v, out, grad_out, grad_lse, scale,
                                 [](double value) { return value; });
  Results plain = define<float>(p, mask, q, k, v, out, grad_out, grad_lse, scale, [&](float value) {
    return static_cast<float>(stored_as(p.dtype, value));
  });
  expect_by_rule(out, exact.out, plain.out, p.name + " out", p.keys);
  for (int64_t i = 0; i < lse.elements(); ++i) {
    if (exact.lse[index(i)] != -kInfinity) continue;
    expect(lse.at(i) == -kInfinity, p.name + " log-sum-exp of no keys");
    exact.lse[index(i)] = plain.lse[index(i)] = 0;
    lse.set(i, 0.0f);
  }
  expect_by_rule(lse, exact.lse, plain.lse, p.name + " lse");
  expect_by_rule(grad_q, exact.grad_q, plain.grad_q, p.name + " grad_q", p.keys);
  expect_by_rule(grad_k, exact.grad_k, plain.grad_k, p.name + " grad_k", p.queries);
  expect_by_rule(grad_v, exact.grad_v, plain.grad_v, p.name + " grad_v", p.queries);

  const auto out_before = out.bytes(), q_before = grad_q.bytes(), k_before = grad_k.bytes();
  p.variant->attention_forward(forward, 1);
  p.variant->attention_backward(backward, 1);
  expect(out.bytes() == out_before && grad_q.bytes() == q_before && grad_k.bytes() == k_before,
         p.name + ": other bits on one thread");
}

struct Merged {
  Doubles out, lse, grad_a, grad_b, grad_lse_a, grad_lse_b;
};

template <class Real>
Merged define_merge(const Problem& p, const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                    const Tensor& lse_b, const Tensor& grad, const Tensor& grad_lse) {
  const auto at = [](const Tensor& x, int64_t i) { return static_cast<Real>(x.at(i)); };
  const auto room = [](const Tensor& x) { return Doubles(index(x.elements())); };
  Merged m{room(out_a), room(lse_a), room(out_a), room(out_b), room(lse_a), room(lse_b)};
  for (int64_t n = 0; n < lse_a.elements(); ++n) {
    const int64_t b = n / (p.h * p.queries), h = n / p.queries % p.h, l = n % p.queries;
    const int64_t row = ((b * p.queries + l) * p.h + h) * p.d;
    const Real top = std::fmax(at(lse_a, n), at(lse_b, n));
    const Real total = std::exp(at(lse_a, n) - top) + std::exp(at(lse_b, n) - top);
    const Real a = std::exp(at(lse_a, n) - top) / total, other = 1 - a;
    m.lse[index(n)] = static_cast<double>(top + std::log(total));
    Real dot = 0;
    for (int64_t i = row; i < row + p.d; ++i) {
      m.out[index(i)] = static_cast<double>(a * at(out_a, i) + other * at(out_b, i));
      m.grad_a[index(i)] = static_cast<double>(a * at(grad, i));
      m.grad_b[index(i)] = static_cast<double>(other * at(grad, i));
      dot += at(grad, i) * (at(out_b, i) - at(out_a, i));
    }
    m.grad_lse_a[index(n)] = static_cast<double>(a * at(grad_lse, n) - a * other * dot);
    m.grad_lse_b[index(n)] = static_cast<double>(other * at(grad_lse, n) + a * other * dot);
  }
  return m;
}

void test_merge(const Problem& p, std::mt19937& random) {
  const std::vector<int64_t> shape{p.b, p.queries, p.h, p.d}, rows{p.b, p.h, p.queries};
  const auto wide = [&] { return Tensor(shape, DType::f32, random); };
  const auto sums = [&] { return Tensor(rows, DType::f32, random); };
  Tensor out_a = wide(), out = wide(), grad = wide(), grad_a = wide();
  Tensor out_b(shape, p.dtype, random), grad_b(shape, p.dtype, random);
  Tensor lse_a = sums(), lse_b = sums(), lse = sums();
  Tensor grad_lse = sums(), grad_lse_a = sums(), grad_lse_b = sums();
  for (int64_t i = 0; i < lse_a.elements(); ++i) {
    if (i % 7 == 1) lse_a.set(i, -1e4f);
    if (i % 7 == 2) lse_b.set(i, 1e4f);
    if (i % 7 == 3) lse_a.set(i, static_cast<float>(-kInfinity));
    if (i % 7 == 4) lse_b.set(i, static_cast<float>(-kInfinity));
  }
  p.variant->merge_forward(
      {out_a.view(), lse_a.view(), out_b.view(), lse_b.view(), out.view(), lse.view()}, 3);
  p.variant->merge_backward(
      {grad.view(), grad_lse.view(), out_a.view(), lse_a.view(), out_b.view(), lse_b.view(),
       grad_a.view(), grad_lse_a.view(), grad_b.view(), grad_lse_b.view()},
      3);
  const auto exact = define_merge<double>(p, out_a, lse_a, out_b, lse_b, grad, grad_lse);
  const auto plain = define_merge<float>(p, out_a, lse_a, out_b, lse_b, grad, grad_lse);
  expect_by_rule(out, exact.out, plain.out, p.name + " merged out");
  expect_by_rule(lse, exact.lse, plain.lse, p.name + " merged lse");
  expect_by_rule(grad_a, exact.grad_a, plain.grad_a, p.name + " merge grad_out_a");
  expect_by_rule(grad_b, exact.grad_b, plain.grad_b, p.name + " merge grad_out_b");
  expect_by_rule(grad_lse_a, exact.grad_lse_a, plain.grad_lse_a, p.name + " merge grad_lse_a");
  expect_by_rule(grad_lse_b, exact.grad_lse_b, plain.grad_lse_b, p.name + " merge grad_lse_b");
}

void test_refusals(std::mt19937& random) {
  Tensor q({2, 3, 4, 8}, DType::f32, random), k({2, 5, 4, 8}, DType::f32, random);
  Tensor lse({2, 4, 3}, DType::f32, random), v({2, 6, 4, 8}, DType::f32, random);
  std::string message;
  try {
    cpu::attention_forward({q.view(), k.view(), v.view(), {}, {}, q.view(), lse.view(), 1}, 1);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  expect(message == "v: has shape (2, 6, 4, 8), expected (2, 5, 4, 8)", "v is refused: " + message);
}

}  // namespace

void test_all_attention(std::mt19937& random) {
  const cpu::Variant* list = nullptr;
  const int count = cpu::variants(&list);
  // b, queries, keys, heads, head dim; many keys and few heads are cut into ranges
  const int64_t shapes[][5] = {{1, 40, 1, 1, 32},    {2, 7, 5, 3, 40},    {3, 129, 200, 2, 64},
                               {1, 70, 1100, 1, 17}, {1, 3, 300, 2, 128}, {1, 60, 66, 1, 256}};
  for (int v = 0; v < count; ++v) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (const auto& s : shapes) {
        for (bool masked : {false, true}) {
          const Problem problem{&list[v],
                                dtype,
                                s[0],
                                s[1],
                                s[2],
                                s[3],
                                s[4],
                                masked,
                                std::string(list[v].name) +
                                    (dtype == DType::f32 ? " f32" : " bf16") +
                                    (masked ? " masked" : "") + " attention " +
                                    std::to_string(s[1]) + "x" + std::to_string(s[2])};
          test_attention(problem, random);
          if (!masked && problem.queries >= 60) test_merge(problem, random);
        }
      }
    }
  }
  test_refusals(random);
}

}  // namespace vidgen::test
