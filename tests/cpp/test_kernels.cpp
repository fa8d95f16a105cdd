// Every variant of every kernel this CPU can run, against the definition in double.
#include <cstdlib>
#include <functional>
#include <stdexcept>

#include "check.h"

namespace vidgen::test {
namespace {

struct Case {
  const cpu::Variant* variant;
  DType dtype;
  int64_t b, l, d;
  std::string name;
};

using Doubles = std::vector<double>;

std::size_t index(int64_t i) { return static_cast<std::size_t>(i); }

// (1 + scale) * normal + shift and its gradients, of x (B, L, D).
struct ExactModulate {
  Doubles out, grad_x, grad_shift, grad_scale;

  template <class X>
  ExactModulate(int64_t b, int64_t l, int64_t d, const X& x, const Tensor& shift,
                const Tensor& scale, const Tensor& grad, double eps)
      : out(index(b * l * d)),
        grad_x(index(b * l * d)),
        grad_shift(index(b * d)),
        grad_scale(index(b * d)) {
    for (int64_t row = 0; row < b * l; ++row) {
      const int64_t sample = row / l;
      double mean = 0, variance = 0, w_mean = 0, w_normal_mean = 0;
      for (int64_t i = 0; i < d; ++i) mean += x(row * d + i) / double(d);
      for (int64_t i = 0; i < d; ++i) {
        variance += std::pow(x(row * d + i) - mean, 2) / double(d);
      }
      const double rstd = 1 / std::sqrt(variance + eps);
      const auto normal = [&](int64_t i) { return (x(row * d + i) - mean) * rstd; };
      const auto w = [&](int64_t i) {
        return grad.at(row * d + i) * (1 + scale.at(sample * d + i));
      };
      for (int64_t i = 0; i < d; ++i) {
        w_mean += w(i) / double(d);
        w_normal_mean += w(i) * normal(i) / double(d);
      }
      for (int64_t i = 0; i < d; ++i) {
        out[index(row * d + i)] =
            (1 + scale.at(sample * d + i)) * normal(i) + shift.at(sample * d + i);
        grad_x[index(row * d + i)] = rstd * (w(i) - w_mean - normal(i) * w_normal_mean);
        grad_shift[index(sample * d + i)] += grad.at(row * d + i);
        grad_scale[index(sample * d + i)] += grad.at(row * d + i) * normal(i);
      }
    }
  }
};

void test_modulate(const Case& c, std::mt19937& random) {
  const float eps = 1e-3f;
  const auto tokens = [&] { return Tensor({c.b, c.l, c.d}, c.dtype, random); };
  const auto vectors = [&](DType dtype) { return Tensor({c.b, c.d}, dtype, random); };
  Tensor x = tokens(), out = tokens(), grad = tokens(), grad_x = tokens();
  Tensor shift = vectors(c.dtype), scale = vectors(DType::f32);
  Tensor mean({c.b, c.l}, DType::f32, random), rstd({c.b, c.l}, DType::f32, random);
  Tensor grad_shift = vectors(DType::f32), grad_scale = vectors(DType::f32);
  const ModulateForward forward{x.view(),    shift.view(), scale.view(), out.view(),
                                mean.view(), rstd.view(),  eps};
  const ModulateBackward backward{grad.view(), x.view(),      scale.view(),      mean.view(),
                                  rstd.view(), grad_x.view(), grad_shift.view(), grad_scale.view()};
  check(forward);
  check(backward);
  c.variant->modulate_forward(forward, 3);
  c.variant->modulate_backward(backward, 3);
  const ExactModulate exact(
      c.b, c.l, c.d, [&](int64_t i) { return x.at(i); }, shift, scale, grad, eps);
  expect_close(out, exact.out, c.name + " modulate out");
  expect_close(grad_x, exact.grad_x, c.name + " modulate grad_x");
  expect_close(grad_shift, exact.grad_shift, c.name + " modulate grad_shift");
  expect_close(grad_scale, exact.grad_scale, c.name + " modulate grad_scale");

  // The same bits on one thread.
  const auto before_x = grad_x.bytes(), before_scale = grad_scale.bytes();
  c.variant->modulate_backward(backward, 1);
  expect(before_x == grad_x.bytes() && before_scale == grad_scale.bytes(),
         c.name + " modulate: other bits on one thread");
}

void test_gated_residual(const Case& c, std::mt19937& random) {
  const auto tokens = [&] { return Tensor({c.b, c.l, c.d}, c.dtype, random); };
  Tensor x = tokens(), y = tokens(), out = tokens(), grad = tokens(), grad_y = tokens();
  Tensor gate({c.b, c.d}, c.dtype, random), grad_gate({c.b, c.d}, DType::f32, random);
  c.variant->gated_residual_forward({x.view(), y.view(), gate.view(), out.view()}, 3);
  c.variant->gated_residual_backward(
      {grad.view(), y.view(), gate.view(), grad_y.view(), grad_gate.view()}, 3);
  Doubles exact(index(x.elements())), exact_y(exact), exact_gate(index(c.b * c.d));
  for (int64_t i = 0; i < x.elements(); ++i) {
    const int64_t v = i / (c.l * c.d) * c.d + i % c.d;
    exact[index(i)] = x.at(i) + gate.at(v) * y.at(i);
    exact_y[index(i)] = gate.at(v) * grad.at(i);
    exact_gate[index(v)] += y.at(i) * grad.at(i);
  }
  expect_close(out, exact, c.name + " gated_residual out");
  expect_close(grad_y, exact_y, c.name + " gated_residual grad_y");
  expect_close(grad_gate, exact_gate, c.name + " gated_residual grad_gate");
}

void test_gated_residual_modulate(const Case& c, std::mt19937& random) {
  const float eps = 1e-3f;
  const auto tokens = [&] { return Tensor({c.b, c.l, c.d}, c.dtype, random); };
  const auto vectors = [&](DType dtype) { return Tensor({c.b, c.d}, dtype, random); };
  Tensor x = tokens(), y = tokens(), residual = tokens(), out = tokens();
  Tensor grad = tokens(), grad_residual = tokens(), grad_x = tokens(), grad_y = tokens();
  Tensor gate = vectors(c.dtype), shift = vectors(c.dtype), scale = vectors(c.dtype);
  Tensor mean({c.b, c.l}, DType::f32, random), rstd({c.b, c.l}, DType::f32, random);
  Tensor grad_gate = vectors(DType::f32), grad_shift = vectors(DType::f32),
         grad_scale = vectors(DType::f32);
  c.variant->gated_residual_modulate_forward(
      {x.view(), y.view(), gate.view(), shift.view(), scale.view(), residual.view(), out.view(),
       mean.view(), rstd.view(), eps},
      3);
  c.variant->gated_residual_modulate_backward(
      {grad_residual.view(), grad.view(), residual.view(), y.view(), gate.view(), scale.view(),
       mean.view(), rstd.view(), grad_x.view(), grad_y.view(), grad_gate.view(), grad_shift.view(),
       grad_scale.view()},
      3);
  const ExactModulate exact(
      c.b, c.l, c.d, [&](int64_t i) { return residual.at(i); }, shift, scale, grad, eps);
  Doubles exact_residual(index(x.elements())), total(exact_residual), branch(exact_residual);
  Doubles exact_gate(index(c.b * c.d));
  for (int64_t i = 0; i < x.elements(); ++i) {
    const int64_t v = i / (c.l * c.d) * c.d + i % c.d;
    exact_residual[index(i)] = x.at(i) + gate.at(v) * y.at(i);
    total[index(i)] = exact.grad_x[index(i)] + grad_residual.at(i);
    branch[index(i)] = total[index(i)] * gate.at(v);
    exact_gate[index(v)] += total[index(i)] * y.at(i);
  }
  const std::string op = c.name + " gated_residual_modulate ";
  expect_close(residual, exact_residual, op + "residual");
  expect_close(out, exact.out, op + "out");
  expect_close(grad_x, total, op + "grad_x");
  expect_close(grad_y, branch, op + "grad_y");
  expect_close(grad_gate, exact_gate, op + "grad_gate");
  expect_close(grad_shift, exact.grad_shift, op + "grad_shift");
  expect_close(grad_scale, exact.grad_scale, op + "grad_scale");
}

void test_gelu_tanh(const Case& c, std::mt19937& random) {
  const auto tokens = [&] { return Tensor({c.b, c.l, c.d}, c.dtype, random); };
  Tensor x = tokens(), out = tokens(), grad = tokens(), grad_x = tokens();
  for (int64_t i = 0; i < x.elements(); i += 5) x.set(i, static_cast<float>(x.at(i) * 20));
  c.variant->gelu_tanh_forward({x.view(), out.view()}, 3);
  c.variant->gelu_tanh_backward({grad.view(), x.view(), grad_x.view()}, 3);
  Doubles exact(index(x.elements())), exact_grad(exact);
  const double slope = std::sqrt(2 / M_PI);
  for (int64_t i = 0; i < x.elements(); ++i) {
    const double v = x.at(i);
    const double t = std::tanh(slope * (v + 0.044715 * v * v * v));
    const double du = slope * (1 + 3 * 0.044715 * v * v);
    exact[index(i)] = v / 2 * (1 + t);
    exact_grad[index(i)] = grad.at(i) * ((1 + t) / 2 + v / 2 * (1 - t * t) * du);
  }
  expect_close(out, exact, c.name + " gelu_tanh out");
  expect_close(grad_x, exact_grad, c.name + " gelu_tanh grad_x");
}

// q and k are views of one (B, L, 3, H, D) tensor.
void test_qk_norm_rope(const Case& c, std::mt19937& random) {
  const float eps = 1e-3f;
  const int64_t heads = 3, width = 2 * (c.d % 61 + 2), pairs = width / 2;
  Tensor packed({c.b, c.l, 3 * heads, width}, c.dtype, random);
  TensorView q = packed.view(), k = packed.view();
  q.size[2] = k.size[2] = heads;
  k.data = static_cast<char*>(k.data) + heads * width * bytes_of(c.dtype);
  const auto dense = [&] { return Tensor({c.b, c.l, heads, width}, c.dtype, random); };
  Tensor q_out = dense(), k_out = dense(), grad_q_out = dense(), grad_k_out = dense();
  Tensor grad_q = dense(), grad_k = dense();
  Tensor q_scale({width}, c.dtype, random), k_scale({width}, DType::f32, random);
  Tensor grad_q_scale({width}, DType::f32, random), grad_k_scale({width}, DType::f32, random);
  Tensor cos({c.l, pairs}, DType::f32, random), sin({c.l, pairs}, DType::f32, random);
  const QkNormRopeForward forward{q,          k,          q_scale.view(), k_scale.view(),
                                  cos.view(), sin.view(), q_out.view(),   k_out.view(),
                                  eps};
  check(forward);
  c.variant->qk_norm_rope_forward(forward, 3);
  c.variant->qk_norm_rope_backward(
      {grad_q_out.view(), grad_k_out.view(), q, k, q_scale.view(), k_scale.view(), cos.view(),
       sin.view(), grad_q.view(), grad_k.view(), grad_q_scale.view(), grad_k_scale.view(), eps},
      3);

  const auto side = [&](int64_t offset, const Tensor& scale, const Tensor& out, const Tensor& grad,
                        const Tensor& grad_x, const Tensor& grad_scale, const std::string& name) {
    Doubles exact(index(out.elements())), exact_grad(exact), exact_scale(index(width));
    for (int64_t row = 0; row < c.b * c.l * heads; ++row) {
      const int64_t token = row / heads;
      const int64_t start = (token * 3 * heads + offset + row % heads) * width;
      const int64_t angle = token % c.l * pairs;
      double squares = 0, dot = 0;
      for (int64_t i = 0; i < width; ++i) squares += std::pow(packed.at(start + i), 2);
      const double rstd = 1 / std::sqrt(squares / double(width) + eps);
      const auto normal = [&](int64_t i) { return packed.at(start + i) * rstd; };
      const auto partner = [&](int64_t i) { return i < pairs ? i + pairs : i - pairs; };
      const auto sign = [&](int64_t i) { return i < pairs ? -1.0 : 1.0; };
      const auto before = [&](int64_t i) {  // the gradient before the rotation
        return grad.at(row * width + i) * cos.at(angle + i % pairs) -
               sign(i) * grad.at(row * width + partner(i)) * sin.at(angle + i % pairs);
      };
      for (int64_t i = 0; i < width; ++i) {
        dot += before(i) * scale.at(i) * normal(i) / double(width);
        exact_scale[index(i)] += before(i) * normal(i);
        exact[index(row * width + i)] =
            normal(i) * scale.at(i) * cos.at(angle + i % pairs) +
            sign(i) * normal(partner(i)) * scale.at(partner(i)) * sin.at(angle + i % pairs);
      }
      for (int64_t i = 0; i < width; ++i) {
        exact_grad[index(row * width + i)] = rstd * (before(i) * scale.at(i) - normal(i) * dot);
      }
    }
    expect_close(out, exact, c.name + " qk_norm_rope out of " + name);
    expect_close(grad_x, exact_grad, c.name + " qk_norm_rope gradient of " + name);
    expect_close(grad_scale, exact_scale,
                 c.name + " qk_norm_rope gradient of the scale of " + name);
  };
  side(0, q_scale, q_out, grad_q_out, grad_q, grad_q_scale, "q");
  side(heads, k_scale, k_out, grad_k_out, grad_k, grad_k_scale, "k");
}

// The values' heads out of a packed projection, and into every second head of another tensor.
void test_copy_rows(const Case& c, std::mt19937& random) {
  const int64_t heads = 3, width = c.d;
  Tensor packed({c.b, c.l, 3 * heads, width}, c.dtype, random);
  Tensor wide({c.b, c.l, 2 * heads, width}, c.dtype, random);
  Tensor dense({c.b, c.l, heads, width}, c.dtype, random);
  TensorView from = packed.view();
  from.size[2] = heads;
  from.data = static_cast<char*>(from.data) + 2 * heads * width * bytes_of(c.dtype);
  TensorView apart = wide.view();
  apart.size[2] = heads;
  apart.stride[2] *= 2;
  for (const CopyRows& copy : {CopyRows{from, dense.view()}, CopyRows{from, apart}}) {
    check(copy);
    c.variant->copy_rows_forward(copy, 3);
  }
  bool same = true;
  for (int64_t token = 0; token < c.b * c.l; ++token) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < width; ++i) {
        const double value = packed.at((token * 3 * heads + 2 * heads + h) * width + i);
        same = same && dense.at((token * heads + h) * width + i) == value &&
               wide.at((token * 2 * heads + 2 * h) * width + i) == value;
      }
    }
  }
  expect(same, c.name + " copy_rows");
}

void test_video_to_input(const Case& c, std::mt19937& random) {
  const int64_t frames = 2, height = c.l % 7 + 1, width = c.d % 13 + 1, channels = 3;
  Tensor table({channels, 256}, c.dtype, random);
  Tensor out({c.b, channels, frames, height, width}, c.dtype, random);
  std::vector<uint8_t> pixels(index(c.b * frames * height * width * channels));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random());
  std::vector<uint8_t> flip(index(c.b));
  for (std::size_t b = 0; b < flip.size(); ++b) flip[b] = b % 2;
  TensorView in;
  in.data = pixels.data();
  in.dtype = DType::u8;
  in.dims = 5;
  const int64_t shape[] = {c.b, frames, height, width, channels};
  int64_t stride = 1;
  for (int i = 4; i >= 0; --i) {
    in.size[i] = shape[i];
    in.stride[i] = stride;
    stride *= shape[i];
  }
  TensorView mirror;
  mirror.data = flip.data();
  mirror.dtype = DType::u8;
  mirror.dims = 1;
  mirror.size[0] = c.b;
  mirror.stride[0] = 1;
  const VideoToInput arguments{in, table.view(), mirror, out.view()};
  check(arguments);
  c.variant->video_to_input_forward(arguments, 3);
  Doubles exact;
  for (int64_t b = 0; b < c.b; ++b)
    for (int64_t ch = 0; ch < channels; ++ch)
      for (int64_t t = 0; t < frames; ++t)
        for (int64_t h = 0; h < height; ++h)
          for (int64_t w = 0; w < width; ++w) {
            const int64_t from = flip[index(b)] != 0 ? width - 1 - w : w;
            const int64_t at = (((b * frames + t) * height + h) * width + from) * channels + ch;
            exact.push_back(table.at(ch * 256 + pixels[index(at)]));
          }
  for (int64_t i = 0; i < out.elements(); ++i) {
    expect(out.at(i) == exact[index(i)], c.name + " video_to_input element " + std::to_string(i));
  }
}

// Moments in the case's type; those in bf16 may lie to either side of the exact ones.
void test_adamw(const Case& c, std::mt19937& random) {
  const std::vector<int64_t> shape{1, c.b * c.l, c.d};
  Tensor param(shape, DType::f32, random), grad(shape, DType::f32, random);
  Tensor first(shape, c.dtype, random), second(shape, c.dtype, random);
  Tensor average(shape, DType::f32, random);
  for (int64_t i = 0; i < second.elements(); ++i) second.set(i, float(std::fabs(second.at(i))));
  const AdamwNumbers n{0.99f, 0.1f, 0.95f, 0.05f, 1e-8f, 0.01f, 1.5f, 0.2f};
  const AdamwPlace place{{1u, 2u}, 3u, uint32_t(c.d)};
  const auto numbers_of = [](const auto& values, DType dtype, int64_t count) {
    TensorView view;
    view.data = const_cast<void*>(static_cast<const void*>(&values));
    view.dtype = dtype;
    view.dims = 1;
    view.size[0] = count;
    view.stride[0] = 1;
    return view;
  };
  Doubles param_after, first_after, second_after, average_after;
  for (int64_t i = 0; i < param.elements(); ++i) {
    const double m = first.at(i) + n.rate1 * (grad.at(i) - first.at(i));
    const double v = n.beta2 * second.at(i) + n.rate2 * grad.at(i) * grad.at(i);
    const double p = n.keep * param.at(i) - n.step_size * m / (std::sqrt(v) * n.root + n.eps);
    param_after.push_back(p);
    first_after.push_back(m);
    second_after.push_back(v);
    average_after.push_back(average.at(i) + n.follow * (p - average.at(i)));
  }
  const AdamwForward step{param.view(),
                          grad.view(),
                          first.view(),
                          second.view(),
                          average.view(),
                          numbers_of(n, DType::f32, 8),
                          numbers_of(place, DType::i32, 4)};
  check(step);
  c.variant->adamw_forward(step, 3);
  expect_close(param, param_after, c.name + " adamw param");
  expect_close(first, first_after, c.name + " adamw exp_avg", 2);
  expect_close(second, second_after, c.name + " adamw exp_avg_sq", 2);
  expect_close(average, average_after, c.name + " adamw average");
}

// Every 16-bit pattern through load and store: what a number is, its rounding, NaN stays NaN.
void test_half_precision_round_trip(const cpu::Variant& variant) {
  for (DType dtype : {DType::bf16, DType::f16}) {
    std::vector<uint16_t> x(65536), zero(65536), out(65536);
    std::vector<float> no_gate(65536);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
    TensorView tokens;
    tokens.dtype = dtype;
    tokens.dims = 3;
    tokens.size[0] = 1;
    tokens.size[1] = 1;
    tokens.size[2] = 65536;
    tokens.stride[0] = tokens.stride[1] = 65536;
    tokens.stride[2] = 1;
    TensorView gate;
    gate.dtype = DType::f32;
    gate.data = no_gate.data();
    gate.dims = 2;
    gate.size[0] = 1;
    gate.size[1] = gate.stride[0] = 65536;
    gate.stride[1] = 1;
    const auto view = [&](std::vector<uint16_t>& memory) {
      TensorView result = tokens;
      result.data = memory.data();
      return result;
    };
    variant.gated_residual_forward({view(x), view(zero), gate, view(out)}, 1);
    const unsigned exponent = dtype == DType::bf16 ? 0x7f80 : 0x7c00;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool nan = (i & 0x7fff) > exponent;
      const bool found_nan = (out[i] & 0x7fffu) > exponent;
      // x + 0 * 0: minus zero becomes plus zero.
      const bool same = nan ? found_nan : out[i] == i || (i == 0x8000 && out[i] == 0);
      if (!same) {
        expect(false, std::string(variant.name) + " round trip of pattern " + std::to_string(i));
        break;
      }
    }
  }
}

void test_checks() {
  std::mt19937 random(1);
  Tensor x({2, 3, 8}, DType::f32, random), gate({2, 7}, DType::f32, random);
  std::string message;
  try {
    cpu::gated_residual_forward({x.view(), x.view(), gate.view(), x.view()}, 1);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  expect(message == "gate: has shape (2, 7), expected (2, 8)", "gate is refused: " + message);
}

}  // namespace
}  // namespace vidgen::test

// An argument is the seed of a run to repeat.
int main(int argc, char** argv) {
  using namespace vidgen;
  using namespace vidgen::test;
  const cpu::Variant* list = nullptr;
  const int count = cpu::variants(&list);
  const unsigned seed =
      argc > 1 ? static_cast<unsigned>(std::atol(argv[1])) : std::random_device{}();
  std::mt19937 random(seed);
  const int64_t shapes[][3] = {{1, 1, 5}, {2, 37, 101}, {1, 130, 256}, {3, 0, 8}, {2, 19, 515}};
  for (int v = 0; v < count; ++v) {
    std::printf("variant %s\n", list[v].name);
    test_half_precision_round_trip(list[v]);
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (const auto& shape : shapes) {
        const Case c{&list[v],
                     dtype,
                     shape[0],
                     shape[1],
                     shape[2],
                     std::string(list[v].name) + (dtype == DType::f32 ? " f32 " : " bf16 ") +
                         std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" +
                         std::to_string(shape[2])};
        for (const auto& test :
             {test_modulate, test_gated_residual, test_gated_residual_modulate, test_gelu_tanh,
              test_qk_norm_rope, test_copy_rows, test_video_to_input, test_adamw}) {
          test(c, random);
        }
      }
    }
  }
  test_all_attention(random);
  test_checks();
  test_crc32c();
  test_io();
  if (failures == 0) {
    std::printf("all passed\n");
  } else {
    std::fprintf(stderr, "%d failed with seed %u\n", failures, seed);
  }
  return failures == 0 ? 0 : 1;
}
