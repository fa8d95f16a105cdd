// A warp has one head of one token at a time. Lane t holds the pairs (j, j + P) of the packs
// t, t + 32, ... so the rotation needs no exchange.
#include "cuda/rows.cuh"

namespace vidgen::cuda {
namespace {

constexpr int kWarps = 4;  // of a block
constexpr int kMaxPairs = kMaxHeadWidth / 2;
constexpr std::size_t kSharedBytes = kWarps * kMaxHeadWidth * sizeof(float);

template <class T>
struct Heads {
  T* data;
  int64_t of_sample, of_token, of_head;  // strides

  explicit Heads(const TensorView& view)
      : data(static_cast<T*>(view.data)),
        of_sample(view.stride[0]),
        of_token(view.stride[1]),
        of_head(view.stride[2]) {}
  __device__ __forceinline__ T* at(int64_t b, int64_t l, int64_t h) const {
    return data + b * of_sample + l * of_token + h * of_head;
  }
};

// One of q and k; blockIdx.y says which.
template <class T>
struct Forward {
  Heads<const T> x[2];
  Vectors scale[2];
  Heads<T> out[2];
  const float *cos, *sin;
  int64_t tokens, length, heads;
  int pairs;
  float eps;
};

template <class T>
struct Backward {
  Heads<const T> grad_out[2], x[2];
  Vectors scale[2];
  Heads<T> grad_x[2];
  const float *cos, *sin;
  float* partials;
  int64_t tokens, length, heads, tokens_per_block;
  int pairs;
  float eps;
};

// A lane's share of a row of P values: `Packs` packs of N, absent ones 0.
template <int N>
struct Share {
  static constexpr int kPacks = kMaxPairs / (kWarp * N);
  float value[kPacks][N];

  template <class Load>
  __device__ __forceinline__ void load(int pairs, Load&& from) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int j = N * (static_cast<int>(threadIdx.x % kWarp) + p * kWarp);
#pragma unroll
      for (int n = 0; n < N; ++n) value[p][n] = 0.0f;
      if (j < pairs) from(j, value[p]);
    }
  }
  template <class T>
  __device__ __forceinline__ void store(int pairs, T* to) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int j = N * (static_cast<int>(threadIdx.x % kWarp) + p * kWarp);
      if (j < pairs) cuda::store<N>(to + j, value[p]);
    }
  }
};

template <int N, class Body>
__device__ __forceinline__ void each(Body&& body) {
#pragma unroll
  for (int p = 0; p < Share<N>::kPacks; ++p) {
#pragma unroll
    for (int n = 0; n < N; ++n) body(p, n);
  }
}

template <int N>
struct Halves {
  Share<N> first, second;

  template <class T>
  __device__ __forceinline__ void load_row(int pairs, const T* row) {
    first.load(pairs, [&](int64_t j, float (&values)[N]) { cuda::load<N>(row + j, values); });
    second.load(pairs,
                [&](int64_t j, float (&values)[N]) { cuda::load<N>(row + pairs + j, values); });
  }
  __device__ __forceinline__ void load_vector(int pairs, const Vectors& vector) {
    first.load(pairs, [&](int64_t j, float (&values)[N]) { vector.load<N>(0, j, values); });
    second.load(pairs,
                [&](int64_t j, float (&values)[N]) { vector.load<N>(0, pairs + j, values); });
  }
  __device__ __forceinline__ float reciprocal_rms(int pairs, float eps) const {
    float squares = 0.0f;
    each<N>([&](int p, int n) {
      squares += first.value[p][n] * first.value[p][n];
      squares += second.value[p][n] * second.value[p][n];
    });
    return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(2 * pairs) + eps);
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kWarps* kWarp) forward_kernel(Forward<T> a) {
  const int side = static_cast<int>(blockIdx.y);
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (index >= a.tokens * a.heads) return;
  const int64_t token = index / a.heads;
  const int64_t h = index % a.heads;
  const int64_t b = token / a.length;
  const int64_t l = token % a.length;
  Halves<N> x, scale;
  x.load_row(a.pairs, a.x[side].at(b, l, h));
  scale.load_vector(a.pairs, a.scale[side]);
  Share<N> cos, sin;
  const auto angles = [&](const float* table) {
    return [=](int64_t j, float (&values)[N]) { cuda::load<N>(table + l * a.pairs + j, values); };
  };
  cos.load(a.pairs, angles(a.cos));
  sin.load(a.pairs, angles(a.sin));
  const float rstd = x.reciprocal_rms(a.pairs, a.eps);
  each<N>([&](int p, int n) {
    const float first = x.first.value[p][n] * rstd * scale.first.value[p][n];
    const float second = x.second.value[p][n] * rstd * scale.second.value[p][n];
    x.first.value[p][n] = first * cos.value[p][n] - second * sin.value[p][n];
    x.second.value[p][n] = second * cos.value[p][n] + first * sin.value[p][n];
  });
  T* out = a.out[side].at(b, l, h);
  x.first.store(a.pairs, out);
  x.second.store(a.pairs, out + a.pairs);
}

template <class T, int N>
__global__ void __launch_bounds__(kWarps* kWarp) backward_kernel(Backward<T> a) {
  float* shared = dynamic_shared<float>();  // kWarps rows of a head
  const int side = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int width = 2 * a.pairs;
  const int64_t first_token = int64_t{blockIdx.x} * a.tokens_per_block;
  const int64_t end = first_token + a.tokens_per_block;
  const int64_t last_token = end < a.tokens ? end : a.tokens;
  Halves<N> scale;
  Halves<N> sums;
  scale.load_vector(a.pairs, a.scale[side]);
  each<N>([&](int p, int n) { sums.first.value[p][n] = sums.second.value[p][n] = 0.0f; });
  for (int64_t index = first_token * a.heads + warp; index < last_token * a.heads;
       index += kWarps) {
    const int64_t token = index / a.heads;
    const int64_t h = index % a.heads;
    const int64_t b = token / a.length;
    const int64_t l = token % a.length;
    Halves<N> x, grad;
    x.load_row(a.pairs, a.x[side].at(b, l, h));
    grad.load_row(a.pairs, a.grad_out[side].at(b, l, h));
    Share<N> cos, sin;
    const auto angles = [&](const float* table) {
      return [=](int64_t j, float (&values)[N]) { cuda::load<N>(table + l * a.pairs + j, values); };
    };
    cos.load(a.pairs, angles(a.cos));
    sin.load(a.pairs, angles(a.sin));
    const float rstd = x.reciprocal_rms(a.pairs, a.eps);
    float dot = 0.0f;
    each<N>([&](int p, int n) {
      const float g1 = grad.first.value[p][n];
      const float g2 = grad.second.value[p][n];
      const float before1 = g1 * cos.value[p][n] + g2 * sin.value[p][n];
      const float before2 = g2 * cos.value[p][n] - g1 * sin.value[p][n];
      x.first.value[p][n] *= rstd;
      x.second.value[p][n] *= rstd;
      sums.first.value[p][n] += before1 * x.first.value[p][n];
      sums.second.value[p][n] += before2 * x.second.value[p][n];
      grad.first.value[p][n] = before1 * scale.first.value[p][n];
      grad.second.value[p][n] = before2 * scale.second.value[p][n];
      dot += grad.first.value[p][n] * x.first.value[p][n];
      dot += grad.second.value[p][n] * x.second.value[p][n];
    });
    const float mean = warp_sum(dot) / static_cast<float>(width);
    each<N>([&](int p, int n) {
      x.first.value[p][n] = (grad.first.value[p][n] - x.first.value[p][n] * mean) * rstd;
      x.second.value[p][n] = (grad.second.value[p][n] - x.second.value[p][n] * mean) * rstd;
    });
    T* out = a.grad_x[side].at(b, l, h);
    x.first.store(a.pairs, out);
    x.second.store(a.pairs, out + a.pairs);
  }
  sums.first.store(a.pairs, shared + warp * kMaxHeadWidth);
  sums.second.store(a.pairs, shared + warp * kMaxHeadWidth + a.pairs);
  __syncthreads();
  float* partial = a.partials + (int64_t{blockIdx.x} * 2 + side) * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kWarps * kWarp) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[w * kMaxHeadWidth + i];
    partial[i] = total;
  }
}

// Whether two pairs at a time can be read: both halves of a head start on a boundary of two
// elements when four elements fit the whole.
template <class... Views>
bool pairs_fit(const TensorView& cos, const TensorView& sin, const Views&... heads) {
  return packs_fit(cos, 2) && packs_fit(sin, 2) && (packs_fit(heads, 4) && ...);
}

// body(T{}, Width<N>{}) with N the pairs read at a time.
template <class Body>
void with_pairs(DType dtype, bool two, Body&& body) {
  const auto choose = [&](auto element) {
    if (two) {
      body(element, Width<2>{});
    } else {
      body(element, Width<1>{});
    }
  };
  switch (dtype) {
    case DType::f32:
      return choose(float{});
    case DType::bf16:
      return choose(__nv_bfloat16{});
    case DType::f16:
      return choose(__half{});
    case DType::u8:
    case DType::i32:
      throw std::invalid_argument("q: is not of a floating-point type");
  }
}

// All samples are one row of tokens: the scales are shared.
TokenChunks chunks_of(const TensorView& q) { return TokenChunks(1, q.size[0] * q.size[1]); }

}  // namespace

int64_t qk_norm_rope_forward_workspace(const QkNormRopeForward&) { return 0; }

void qk_norm_rope_forward(const QkNormRopeForward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.q.size[0] * a.q.size[1];
  const int64_t heads = a.q.size[2];
  if (tokens * heads == 0) return;
  const bool two = pairs_fit(a.cos, a.sin, a.q, a.k, a.q_scale, a.k_scale, a.q_out, a.k_out);
  with_pairs(a.q.dtype, two, [&](auto element, auto pack) {
    using T = decltype(element);
    constexpr int N = decltype(pack)::value;
    const Forward<T> arguments{{Heads<const T>(a.q), Heads<const T>(a.k)},
                               {Vectors(a.q_scale), Vectors(a.k_scale)},
                               {Heads<T>(a.q_out), Heads<T>(a.k_out)},
                               static_cast<const float*>(a.cos.data),
                               static_cast<const float*>(a.sin.data),
                               tokens,
                               a.q.size[1],
                               heads,
                               static_cast<int>(a.q.size[3] / 2),
                               a.eps};
    const dim3 grid(blocks((tokens * heads + kWarps - 1) / kWarps), 2);
    start("qk_norm_rope_forward", forward_kernel<T, N>, grid, kWarps * kWarp, 0, launch, arguments);
  });
}

int64_t qk_norm_rope_backward_workspace(const QkNormRopeBackward& a) {
  return chunks_of(a.q).count * 2 * a.q.size[3];
}

void qk_norm_rope_backward(const QkNormRopeBackward& a, const Launch& launch) {
  check(a);
  const int64_t tokens = a.q.size[0] * a.q.size[1];
  const int64_t width = a.q.size[3];
  const TokenChunks chunks = chunks_of(a.q);
  if (tokens > 0) {
    const bool two = pairs_fit(a.cos, a.sin, a.grad_q_out, a.grad_k_out, a.q, a.k, a.q_scale,
                               a.k_scale, a.grad_q, a.grad_k);
    with_pairs(a.q.dtype, two, [&](auto element, auto pack) {
      using T = decltype(element);
      constexpr int N = decltype(pack)::value;
      const Backward<T> arguments{{Heads<const T>(a.grad_q_out), Heads<const T>(a.grad_k_out)},
                                  {Heads<const T>(a.q), Heads<const T>(a.k)},
                                  {Vectors(a.q_scale), Vectors(a.k_scale)},
                                  {Heads<T>(a.grad_q), Heads<T>(a.grad_k)},
                                  static_cast<const float*>(a.cos.data),
                                  static_cast<const float*>(a.sin.data),
                                  launch.workspace,
                                  tokens,
                                  a.q.size[1],
                                  a.q.size[2],
                                  chunks.length,
                                  static_cast<int>(width / 2),
                                  a.eps};
      const dim3 grid(blocks(chunks.count), 2);
      start("qk_norm_rope_backward", backward_kernel<T, N>, grid, kWarps * kWarp, kSharedBytes,
            launch, arguments);
    });
  }
  const SumResults results{{static_cast<float*>(a.grad_q_scale.data),
                            static_cast<float*>(a.grad_k_scale.data), nullptr}};
  add_chunks(launch.workspace, 1, chunks.count, 2, width, results, launch);
}

}  // namespace vidgen::cuda
