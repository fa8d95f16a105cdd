#include <cstring>

#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

// 32 random bits for each element: one half for each moment.
__device__ __forceinline__ uint32_t random_bits(const AdamwPlace& place, uint32_t element) {
  uint32_t x = element ^ place.key[0];
  x ^= x >> 16;
  x *= 0x7feb352du;
  x += place.key[1];
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// Up where the random bits carry into the upper half. `random` is below 2^16.
template <class T>
__device__ __forceinline__ T rounded_randomly(float value, uint32_t random);
template <>
__device__ __forceinline__ float rounded_randomly<float>(float value, uint32_t) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded_randomly<__nv_bfloat16>(float value,
                                                                         uint32_t random) {
  if (value != value) return __float2bfloat16_rn(value);
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = (bits + random) & 0xffff0000u;
  memcpy(&value, &bits, sizeof value);
  return __float2bfloat16_rn(value);
}

template <class T, int N>
__device__ __forceinline__ void store_randomly(T* at, const float (&values)[N],
                                               const uint32_t (&random)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; ++n) pack.element[n] = rounded_randomly<T>(values[n], random[n]);
  *reinterpret_cast<Pack<T, N>*>(at) = pack;
}

// One block a row. T is what the moments are kept in.
template <class T, int N>
__global__ void __launch_bounds__(256)
    step_kernel(Rows<float> params, Rows<const float> grads, Rows<T> firsts, Rows<T> seconds,
                Rows<float> averages, AdamwNumbers numbers, AdamwPlace place, int64_t width) {
  const int64_t l = blockIdx.x;
  float* param = params.at(0, l);
  const float* grad = grads.at(0, l);
  T* first = firsts.at(0, l);
  T* second = seconds.at(0, l);
  const uint32_t begin = place.first + static_cast<uint32_t>(l) * place.row;
  for (int64_t i = int64_t{N} * threadIdx.x; i < width; i += int64_t{N} * blockDim.x) {
    float p[N], g[N], m[N], v[N];
    uint32_t low[N], high[N];
    load<N>(param + i, p);
    load<N>(grad + i, g);
    load<N>(first + i, m);
    load<N>(second + i, v);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      m[n] = m[n] + numbers.rate1 * (g[n] - m[n]);
      v[n] = numbers.beta2 * v[n] + numbers.rate2 * (g[n] * g[n]);
      p[n] = numbers.keep * p[n] -
             numbers.step_size * m[n] / (sqrtf(v[n]) * numbers.root + numbers.eps);
      const uint32_t random = random_bits(place, begin + static_cast<uint32_t>(i + n));
      low[n] = random & 0xffffu;
      high[n] = random >> 16;
    }
    store_randomly<T, N>(first + i, m, low);
    store_randomly<T, N>(second + i, v, high);
    store<N>(param + i, p);
    if (averages.data != nullptr) {
      float old[N];
      float* average = averages.at(0, l) + i;
      load<N>(average, old);
#pragma unroll
      for (int n = 0; n < N; ++n) old[n] += numbers.follow * (p[n] - old[n]);
      store<N>(average, old);
    }
  }
}

template <class T>
void launch_step(const AdamwForward& a, const Launch& launch) {
  AdamwNumbers numbers;
  AdamwPlace place;
  std::memcpy(&numbers, a.settings.data, sizeof numbers);
  std::memcpy(&place, a.place.data, sizeof place);
  const TensorView& average = a.average.data != nullptr ? a.average : a.param;
  with_packs(
      DType::f32,
      [&](auto, auto pack) {
        constexpr int N = decltype(pack)::value;
        if constexpr (N <= 4) {
          const int64_t width = a.param.size[2];
          start("adamw_forward", step_kernel<T, N>, blocks(a.param.size[1]), threads_for(width / N),
                0, launch, Rows<float>(a.param), Rows<const float>(a.grad), Rows<T>(a.exp_avg),
                Rows<T>(a.exp_avg_sq), Rows<float>(a.average), numbers, place, width);
        }
      },
      a.param, a.grad, a.exp_avg, a.exp_avg_sq, average);
}

}  // namespace

int64_t adamw_forward_workspace(const AdamwForward&) { return 0; }

void adamw_forward(const AdamwForward& a, const Launch& launch) {
  check(a);
  if (a.param.elements() == 0) return;
  if (a.exp_avg.dtype == DType::f32) {
    launch_step<float>(a, launch);
  } else {
    launch_step<__nv_bfloat16>(a, launch);
  }
}

}  // namespace vidgen::cuda
