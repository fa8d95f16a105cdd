// Attention backward: one pass over the scores, recomputed from q, k and the log-sum-exp.
//
// A job is a range of keys of one head. It owns the gradients of those keys and values, and sums
// its part of the gradient of every query; if the keys of a head are split into several ranges, the
// parts are summed in order afterwards. The split depends only on the shape, so the bits do not
// depend on the number of threads.
#include "cpu/attention_keys.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

constexpr int64_t kQueries = 64;  // taken past a group of keys together
static_assert(kMaskQueries % kQueries == 0);
constexpr int64_t kWantedJobs = 24;
constexpr int64_t kLeastKeys = 512;  // of a range

VIDGEN_INLINE int64_t group_of_keys(int64_t padded) { return padded <= 128 ? 128 : 64; }

// How the keys of a head are split into ranges, one per job.
struct Ranges {
  int64_t keys;   // of a range, whole groups
  int64_t count;  // of ranges

  VIDGEN_INLINE Ranges(const AttentionBackward& a, int64_t group) {
    const int64_t heads = larger(1, a.q.size[0] * a.q.size[2]);
    const int64_t length = larger(1, a.k.size[1]);
    const int64_t wanted = smaller(divided_up(kWantedJobs, heads), divided_up(length, kLeastKeys));
    keys = divided_up(divided_up(length, wanted), group) * group;
    count = divided_up(length, keys);
  }
};

struct Memory {
  float *rows, *keys_turned, *values_turned, *keys, *grad_keys, *grad_values;
  float *queries, *queries_packed, *grads, *grads_packed, *probs, *scores, *score_pairs;
  float *lse, *delta, *grad_queries;
  int64_t row_stride, score_stride;

  VIDGEN_INLINE Memory(Carver& carver, int64_t padded, int64_t group, int64_t all_queries,
                       bool own_grad_queries)
      : row_stride(padded + kSkew), score_stride(group + kSkew) {
    rows = carver.take(group * row_stride);
    float** const of_group[] = {&keys_turned, &values_turned, &keys, &grad_keys, &grad_values};
    for (float** array : of_group) *array = carver.take(group * padded);
    queries = carver.take(kQueries * row_stride);
    queries_packed = carver.take(kQueries * padded);
    grads = carver.take(kQueries * row_stride);
    grads_packed = carver.take(kQueries * padded);
    probs = carver.take(kQueries * score_stride);
    scores = carver.take(kQueries * score_stride);
    score_pairs = carver.take(kQueries / 2 * score_stride);
    lse = carver.take(all_queries);
    delta = carver.take(all_queries);
    grad_queries = own_grad_queries ? carver.take(all_queries * padded) : nullptr;
  }
};

// Per query: its base-2 log-sum-exp, and the term subtracted in its score gradients,
// grad_out . out - grad_lse.
template <class Out, class Grad>
VIDGEN_INLINE void read_queries(const AttentionBackward& a, const Memory& m, int64_t b, int64_t h) {
  const int64_t queries = a.q.size[1];
  const int64_t line = (b * a.q.size[2] + h) * queries;
  for (int64_t l = 0; l < queries; ++l) {
    const Out* out = row<const Out>(a.out, b, l, h);
    const Grad* grad = row<const Grad>(a.grad_out, b, l, h);
    VectorSums dot;
    over_vectors(a.q.size[3], [&](auto at, int s)
                                  VIDGEN_LAMBDA { dot.part[s] += at.load(out) * at.load(grad); });
    const float grad_lse = a.grad_lse.dims == 0 ? 0.0f : floats(a.grad_lse)[line + l];
    const float lse = floats(a.lse)[line + l];
    // A query without keys: 2^(score - infinity) is zero.
    m.lse[l] = lse == -kInfinity ? kInfinity : lse * kLog2E;
    m.delta[l] = dot.total() - grad_lse;
  }
}

VIDGEN_INLINE void read_queries(const AttentionBackward& a, const Memory& m, int64_t b, int64_t h) {
  with_type(a.out.dtype, [&](auto out) VIDGEN_LAMBDA {
    with_type(a.grad_out.dtype, [&](auto grad) VIDGEN_LAMBDA {
      read_queries<decltype(out), decltype(grad)>(a, m, b, h);
    });
  });
}

// Scores -> probabilities, and gradients of the probabilities -> of the scores.
VIDGEN_INLINE void score_gradients(const Memory& m, int64_t first, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    float* probs = m.probs + r * m.score_stride;
    float* grads = m.scores + r * m.score_stride;
    const Floats lse = spread(m.lse[first + r]), delta = spread(m.delta[first + r]);
    for (int64_t i = 0; i < columns; i += kLanes) {
      const Floats p = exp2_of(load_one(probs + i) - lse);
      store_one(probs + i, p);
      store_one(grads + i, p * (load_one(grads + i) - delta));
    }
  }
}

// The same in bfloat16. Two rows together give pairs in `probs` (row r / 2, already read) and
// `score_pairs`; each single row is stored at its start in `scores`.
VIDGEN_INLINE void score_gradient_pairs(const Memory& m, int64_t first, int64_t rows,
                                        int64_t columns, float scale) {
  const Floats scales = spread(scale);
  for (int64_t r = 0; r < rows; r += 2) {
    // The last of an odd number of rows is paired with zeros.
    const bool two = r + 1 < rows;
    const float* probs = m.probs + r * m.score_stride;
    float* grads = m.scores + r * m.score_stride;
    float* prob_pairs = m.probs + r / 2 * m.score_stride;
    float* grad_pairs = m.score_pairs + r / 2 * m.score_stride;
    const int64_t next = two ? m.score_stride : 0;
    const int64_t second = first + r + (two ? 1 : 0);
    const Floats lse[2] = {spread(m.lse[first + r]), spread(m.lse[second])};
    const Floats delta[2] = {spread(m.delta[first + r]), spread(m.delta[second])};
    for (int64_t i = 0; i < columns; i += kLanes) {
      const Floats p = exp2_of(load_one(probs + i) * scales - lse[0]);
      Floats p_next = {}, g_next = {};
      const Floats g = p * (load_one(grads + i) - delta[0]);
      if (two) {
        p_next = exp2_of(load_one(probs + next + i) * scales - lse[1]);
        g_next = p_next * (load_one(grads + next + i) - delta[1]);
        store_one(reinterpret_cast<BFloat16*>(grads + next) + i, g_next);
      }
      store_one(reinterpret_cast<BFloat16*>(grads) + i, g);
      store_one(prob_pairs + i, pair(p, p_next));
      store_one(grad_pairs + i, pair(g, g_next));
    }
  }
}

// The queries [first, first + rows), packed, past the keys of the packed group they see.
template <bool kPairs>
VIDGEN_INLINE void pass(const Memory& m, const Runs& runs, int64_t first, int64_t rows,
                        int64_t width, int64_t padded, int64_t packed_keys, float scale,
                        float* grad_queries) {
  const int64_t features = deep<kPairs>(padded), depth = deep<kPairs>(width);
  int64_t column = 0;
  for (int i = 0; i < runs.count; ++i) {
    const Run run = runs.list[i];
    const int64_t from = run.first * features;
    product<kPairs, Order::kRows, Into::kSet>(m.queries, m.row_stride, m.keys_turned + from,
                                              features * kPanel, rows, run.count, depth,
                                              m.probs + column, m.score_stride);
    product<kPairs, Order::kRows, Into::kSet>(m.grads, m.row_stride, m.values_turned + from,
                                              features * kPanel, rows, run.count, depth,
                                              m.scores + column, m.score_stride);
    column += whole_panels(run.count);
  }
  const float* grads_of_pairs = m.scores;
  if constexpr (kPairs) {
    score_gradient_pairs(m, first, rows, column, scale);
    grads_of_pairs = m.score_pairs;
    // The last of an odd number of keys is paired with a padding column.
    const int64_t last = runs.list[runs.count - 1].count;
    const int64_t end = column - whole_panels(last) + last;
    for (int64_t r = 0; r < rows && end % 2 != 0; ++r) {
      BFloat16* row = reinterpret_cast<BFloat16*>(m.scores + r * m.score_stride);
      std::memset(row + end, 0, sizeof(BFloat16));
    }
  } else {
    score_gradients(m, first, rows, column);
  }
  column = 0;
  for (int i = 0; i < runs.count; ++i) {
    const Run run = runs.list[i];
    const int64_t to = run.first * padded;
    const int64_t down = deep<kPairs>(rows);
    product<kPairs, Order::kColumns, Into::kAdd>(m.probs + column, m.score_stride, m.grads_packed,
                                                 down * kPanel, run.count, padded, down,
                                                 m.grad_values + to, padded);
    product<kPairs, Order::kColumns, Into::kAdd>(grads_of_pairs + column, m.score_stride,
                                                 m.queries_packed, down * kPanel, run.count, padded,
                                                 down, m.grad_keys + to, padded);
    product<kPairs, Order::kRows, Into::kAdd>(m.scores + deep<kPairs>(column), m.score_stride,
                                              m.keys + deep<kPairs>(run.first) * kPanel,
                                              deep<kPairs>(packed_keys) * kPanel, rows, padded,
                                              deep<kPairs>(run.count), grad_queries, padded);
    column += whole_panels(run.count);
  }
}

// A group of keys and values as the right sides of the products.
template <class T>
VIDGEN_INLINE void pack_keys(const AttentionBackward& a, const Memory& m, int64_t b, int64_t h,
                             int64_t key, int64_t keys, int64_t padded) {
  const int64_t packed_keys = whole_panels(keys);
  std::memset(m.rows + keys * m.row_stride, 0,
              std::size_t((packed_keys - keys) * m.row_stride) * sizeof(float));
  if constexpr (kInPairs<T>) {
    narrow<T>(a.v, b, h, key, keys, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded / 2, m.values_turned);
    narrow<T>(a.k, b, h, key, keys, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded / 2, m.keys_turned);
    pack_row_pairs(m.rows, m.row_stride, packed_keys, padded, m.keys);
  } else {
    widen<T>(a.v, b, h, key, keys, 1.0f, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded, m.values_turned);
    widen<T>(a.k, b, h, key, keys, 1.0f, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded, m.keys_turned);
    pack_rows(m.rows, m.row_stride, packed_keys, packed_keys, padded, m.keys);
  }
}

// Some queries, or gradients of their outputs, as left and as right sides of products.
template <bool kPairs, class T>
VIDGEN_INLINE void pack_queries(const TensorView& x, int64_t b, int64_t h, int64_t first,
                                int64_t rows, float factor, const Memory& m, int64_t padded,
                                float* left, float* right) {
  if constexpr (kPairs) {
    narrow<T>(x, b, h, first, rows, left, m.row_stride);
    const int64_t even = 2 * deep<true>(rows);
    if (even > rows) {
      std::memset(left + rows * m.row_stride, 0, std::size_t(padded) * sizeof(BFloat16));
    }
    pack_row_pairs(left, m.row_stride, even, padded, right);
  } else {
    widen<T>(x, b, h, first, rows, factor, left, m.row_stride);
    pack_rows(left, m.row_stride, rows, rows, padded, right);
  }
}

// Rows [first, first + rows) of one head of a gradient: factor * from.
VIDGEN_INLINE void write(const TensorView& to, int64_t b, int64_t h, int64_t first, int64_t rows,
                         const float* from, int64_t padded, float factor) {
  with_type(to.dtype, [&](auto type) VIDGEN_LAMBDA {
    const Floats f = spread(factor);
    for (int64_t l = 0; l < rows; ++l) {
      auto* out = row<decltype(type)>(to, b, first + l, h);
      const float* sums = from + l * padded;
      over_vectors(to.size[3],
                   [&](auto at, int) VIDGEN_LAMBDA { at.store(out, at.load(sums) * f); });
    }
  });
}

// The keys [first, end) of one head; their part of the gradient of the queries goes to `partial`,
// or directly to grad_q if that is null.
template <class T>
VIDGEN_INLINE void job(const AttentionBackward& a, int64_t b, int64_t h, int64_t first, int64_t end,
                       float* partial) {
  const int64_t width = a.q.size[3];
  const int64_t padded = whole_panels(width);
  const int64_t queries = a.q.size[1];
  const int64_t length = keys_of_sample(a.key_lengths, b, a.k.size[1]);
  const int64_t group = group_of_keys(padded);
  Carver sizes(nullptr);
  Memory{sizes, padded, group, queries, partial == nullptr};
  Carver carver(scratch(sizes.used()));
  const Memory m(carver, padded, group, queries, partial == nullptr);
  float* grad_queries = partial == nullptr ? m.grad_queries : partial;

  constexpr bool kPairs = kInPairs<T>;
  const float scale = a.scale * kLog2E;
  read_queries(a, m, b, h);
  std::memset(grad_queries, 0, std::size_t(queries * padded) * sizeof(float));
  for (int64_t key = first; key < end; key += group) {
    const int64_t keys = larger(0, smaller(group, length - key));
    const int64_t packed_keys = whole_panels(keys);
    const int64_t written = smaller(group, end - key);
    std::memset(m.grad_keys, 0, std::size_t(written * padded) * sizeof(float));
    std::memset(m.grad_values, 0, std::size_t(written * padded) * sizeof(float));
    bool packed = false;
    for (int64_t query = 0; keys > 0 && query < queries; query += kQueries) {
      const Runs runs(a.blocks, b, h, query, key, keys);
      if (runs.count == 0) continue;
      if (!packed) {
        pack_keys<T>(a, m, b, h, key, keys, padded);
        packed = true;
      }
      const int64_t rows = smaller(kQueries, queries - query);
      pack_queries<kPairs, T>(a.q, b, h, query, rows, scale, m, padded, m.queries,
                              m.queries_packed);
      with_type(a.grad_out.dtype, [&](auto type) VIDGEN_LAMBDA {
        pack_queries<kPairs, decltype(type)>(a.grad_out, b, h, query, rows, 1.0f, m, padded,
                                             m.grads, m.grads_packed);
      });
      pass<kPairs>(m, runs, query, rows, width, padded, packed_keys, scale,
                   grad_queries + query * padded);
    }
    // As floats the packed queries carry scale * log2(e) already.
    write(a.grad_k, b, h, key, written, m.grad_keys, padded, kPairs ? a.scale : kLn2);
    write(a.grad_v, b, h, key, written, m.grad_values, padded, 1.0f);
  }
  if (partial == nullptr) write(a.grad_q, b, h, 0, queries, grad_queries, padded, a.scale);
}

// grad_q from the parts of the ranges, in order.
VIDGEN_INLINE void add_parts(const AttentionBackward& a, int64_t b, int64_t h, int64_t first,
                             int64_t rows, float* partials, int64_t range_stride, int64_t ranges,
                             int64_t padded) {
  float* total = partials + first * padded;
  for (int64_t range = 1; range < ranges; ++range) {
    const float* part = total + range * range_stride;
    for (int64_t i = 0; i < rows * padded; i += kLanes) {
      store_one(total + i, load_one(total + i) + load_one(part + i));
    }
  }
  write(a.grad_q, b, h, first, rows, total, padded, a.scale);
}

}  // namespace

void attention_backward(const AttentionBackward& a, int threads) {
  const int64_t heads = a.q.size[2];
  const int64_t all_heads = a.q.size[0] * heads;
  const int64_t queries = a.q.size[1];
  const int64_t padded = whole_panels(a.q.size[3]);
  const Ranges ranges(a, group_of_keys(padded));
  const int64_t part = queries * padded;
  float* partials = nullptr;
  if (ranges.count > 1) {
    partials = allocate_floats(std::size_t(all_heads * ranges.count * part));
  }
  with_type(a.q.dtype, [&](auto type) {
    in_parallel(all_heads * ranges.count, threads, [&](int64_t n) {
      const int64_t head = n / ranges.count, first = n % ranges.count * ranges.keys;
      job<decltype(type)>(a, head / heads, head % heads, first,
                          smaller(a.k.size[1], first + ranges.keys),
                          partials == nullptr ? nullptr : partials + n * part);
    });
  });
  if (partials == nullptr) return;
  const int64_t chunks = divided_up(queries, kMaskQueries);
  in_parallel(all_heads * chunks, threads, [&](int64_t n) {
    const int64_t head = n / chunks, first = n % chunks * kMaskQueries;
    add_parts(a, head / heads, head % heads, first, smaller(kMaskQueries, queries - first),
              partials + head * ranges.count * part, part, ranges.count, padded);
  });
  free_floats(partials);
}

}  // namespace vidgen::cpu::VIDGEN_ISA
