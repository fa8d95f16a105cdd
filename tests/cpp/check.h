// The few words the kernel tests need.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "host/cpu_variants.h"
#include "vidgen/ops.h"

namespace vidgen::test {

inline int failures = 0;

void test_io();      // in test_io.cpp
void test_crc32c();  // in test_crc32c.cpp

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline uint16_t float_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A dense tensor of random normal numbers, rounded to its type, and what they are as double.
class Tensor {
 public:
  Tensor(std::vector<int64_t> shape, DType dtype, std::mt19937& random) : dtype_(dtype) {
    view_.dtype = dtype;
    view_.dims = static_cast<int>(shape.size());
    int64_t elements = 1;
    for (int i = view_.dims - 1; i >= 0; --i) {
      view_.size[i] = shape[static_cast<std::size_t>(i)];
      view_.stride[i] = elements;
      elements *= view_.size[i];
    }
    bytes_.resize(static_cast<std::size_t>(elements * bytes_of(dtype)));
    view_.data = bytes_.data();
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < elements; ++i) set(i, normal(random));
  }

  const TensorView& view() const { return view_; }
  const std::vector<unsigned char>& bytes() const { return bytes_; }
  int64_t elements() const { return view_.elements(); }

  double at(int64_t i) const {
    if (dtype_ == DType::f32) {
      float value;
      std::memcpy(&value, bytes_.data() + i * 4, 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, bytes_.data() + i * 2, 2);
    return bfloat16_to_float(bits);
  }

  void set(int64_t i, float value) {
    if (dtype_ == DType::f32) {
      std::memcpy(bytes_.data() + i * 4, &value, 4);
    } else {
      const uint16_t bits = float_to_bfloat16(value);
      std::memcpy(bytes_.data() + i * 2, &bits, 2);
    }
  }

 private:
  DType dtype_;
  TensorView view_;
  std::vector<unsigned char> bytes_;
};

// Differs from `expected` by no more than the type's rounding and a little float32 arithmetic.
inline void expect_close(const Tensor& found, const std::vector<double>& expected,
                         const std::string& what, double slack = 1) {
  const double unit = slack * (found.view().dtype == DType::f32 ? 2e-6 : 5e-3);
  double largest = 0;
  for (double value : expected) largest = std::fmax(largest, std::fabs(value));
  for (int64_t i = 0; i < found.elements(); ++i) {
    const double error = std::fabs(found.at(i) - expected[static_cast<std::size_t>(i)]);
    if (!(error <= unit * (largest + 1e-3))) {
      expect(false, what + ": element " + std::to_string(i) + " is " + std::to_string(found.at(i)) +
                        ", expected " + std::to_string(expected[static_cast<std::size_t>(i)]));
      return;
    }
  }
}

// `value` as a tensor of this type stores it.
inline double stored_as(DType dtype, double value) {
  const float narrow = static_cast<float>(value);
  return dtype == DType::f32 ? narrow : bfloat16_to_float(float_to_bfloat16(narrow));
}

// The error rule: max|found - exact| <= factor max|plain - exact| + tiny, where `exact` is the
// definition in double and `plain` the same one in float, rounded to the type of `found`. `tiny` is
// one rounding to that type and a few in float on the way. The factor is 4, twice that of the
// Python tests: `plain` has the C library's exp and log, which are about twice as exact as those of
// the vector code that the Python tests compare with. Of few numbers, or sums of few `terms`,
// chance decides whose error is larger: there it is 6.
inline void expect_by_rule(const Tensor& found, const std::vector<double>& exact,
                           const std::vector<double>& plain, const std::string& what,
                           int64_t terms = 32) {
  const DType dtype = found.view().dtype;
  double error = 0, plain_error = 0, largest = 0;
  int64_t worst = 0;
  for (int64_t i = 0; i < found.elements(); ++i) {
    const double wanted = exact[static_cast<std::size_t>(i)];
    const double here = std::fabs(found.at(i) - wanted);
    largest = std::fmax(largest, std::fabs(wanted));
    const double rounded = stored_as(dtype, plain[static_cast<std::size_t>(i)]);
    plain_error = std::fmax(plain_error, std::fabs(rounded - wanted));
    if (!(here <= error)) {
      error = here;
      worst = i;
    }
  }
  const double float_unit = 0x1p-23, unit = dtype == DType::f32 ? float_unit : 0x1p-7;
  const double factor = found.elements() >= 32 && terms >= 32 ? 4 : 6;
  const double allowed = factor * plain_error + (unit / 2 + 3 * float_unit) * largest + 1e-30;
  expect(error <= allowed, what + ": element " + std::to_string(worst) + " is off by " +
                               std::to_string(error / allowed) + " times what is allowed, " +
                               std::to_string(allowed));
}

// tests/cpp/test_attention.cpp
void test_all_attention(std::mt19937& random);

}  // namespace vidgen::test
