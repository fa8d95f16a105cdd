// float16, rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 0x1f;
  const int fraction = value.bits & 0x3ff;
  float result;
  if (exponent == 0x1f) {
    result = fraction != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    result = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    result = std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
  }
  return (value.bits & 0x8000) != 0 ? -result : result;
}

inline __half __float2half_rn(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
  const auto with_sign = [&](unsigned bits) { return __half{static_cast<uint16_t>(sign | bits)}; };
  if (std::isnan(value)) return {0x7fff};
  const float size = std::fabs(value);
  if (size == 0.0f) return with_sign(0);
  if (size >= 65520.0f) return with_sign(0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);  // size in [2^(exponent - 1), 2^exponent)
  // The distance between neighbours is 2^(exponent - 11), and 2^-24 among the smallest.
  const int step = exponent - 11 < -24 ? -24 : exponent - 11;
  // To nearest even, as the rounding mode of the process is.
  const auto steps = static_cast<unsigned>(std::nearbyint(std::ldexp(size, -step)));
  // steps = 1024 .. 2048 continue the numbering of the smallest, 0 .. 1024.
  return with_sign(static_cast<unsigned>(step + 24) * 1024u + steps);
}
