// Attention forward: online softmax over groups of keys.
//
// A job is a range of queries of one head. It packs a group of keys once and processes a few
// queries at a time, so that scores stay in the cache between the two products.
#include <math.h>

#include "cpu/attention_keys.h"

namespace vidgen::cpu::VIDGEN_ISA {
namespace {

constexpr int64_t kJobQueries = 4 * kMaskQueries;
constexpr int64_t kQueries = 48;  // that pass a group of keys together: whole tiles

// Keys packed at a time: keys and values together take a quarter of a megabyte.
VIDGEN_INLINE int64_t group_of_keys(int64_t padded) {
  const int64_t blocks = 32768 / padded / kMaskKeys;
  return kMaskKeys * larger(1, smaller(Runs::kMost, blocks));
}

struct Memory {
  float *rows, *keys, *values, *queries, *out, *scores, *top, *sum, *factor;
  int64_t row_stride, score_stride;

  VIDGEN_INLINE Memory(Carver& carver, int64_t padded, int64_t group)
      : row_stride(padded + kSkew), score_stride(group + kSkew) {
    rows = carver.take(group * row_stride);
    keys = carver.take(group * padded);
    values = carver.take(group * padded);
    queries = carver.take(kJobQueries * row_stride);
    out = carver.take(kJobQueries * padded);
    scores = carver.take(kQueries * score_stride);
    top = carver.take(kJobQueries);
    sum = carver.take(kJobQueries);
    factor = carver.take(kQueries);
  }
};

// scores -> 2^(factor * score - top), with the top of all so far; returns what the sums so far
// shrink by. Pairs: what is stored is bfloat16, at the start of the row.
template <bool kPairs>
VIDGEN_INLINE float softmax_row(float* scores, int64_t columns, float scale, float& top,
                                float& sum_so_far) {
  const Floats scales = spread(scale);
  const auto score = [&](int64_t i) VIDGEN_LAMBDA {
    return kPairs ? load_one(scores + i) * scales : load_one(scores + i);
  };
  Floats most[2] = {spread(-kInfinity), spread(-kInfinity)};
  for (int64_t i = 0; i < columns; i += kPanel) {
    // A NaN never compares larger; it propagates through the sum.
    const Floats x = score(i), y = score(i + kLanes);
    most[0] = x > most[0] ? x : most[0];
    most[1] = y > most[1] ? y : most[1];
  }
  float new_top = largest(most[0] > most[1] ? most[0] : most[1]);
  if (!(new_top > top)) new_top = top;
  const Floats level = spread(new_top == -kInfinity ? 0.0f : new_top);
  Floats sums[2] = {Floats{}, Floats{}};
  for (int64_t i = 0; i < columns; i += kPanel) {
    const Floats x = exp2_of(score(i) - level);
    const Floats y = exp2_of(score(i + kLanes) - level);
    sums[0] += x;
    sums[1] += y;
    if constexpr (kPairs) {
      BFloat16* narrow = reinterpret_cast<BFloat16*>(scores);
      store_one(narrow + i, x);
      store_one(narrow + i + kLanes, y);
    } else {
      store_one(scores + i, x);
      store_one(scores + i + kLanes, y);
    }
  }
  const float factor = top == -kInfinity ? 0.0f : exp2_of(spread(top) - level)[0];
  top = new_top;
  sum_so_far = sum_so_far * factor + VIDGEN_ISA::sum(sums[0] + sums[1]);
  return factor;
}

// The queries [first, first + rows) of the job past the keys of the packed group they see.
template <bool kPairs>
VIDGEN_INLINE void attend(const Memory& m, const Runs& runs, int64_t first, int64_t rows,
                          int64_t width, int64_t padded, int64_t packed_keys, float scale) {
  float* out = m.out + first * padded;
  const float* queries = m.queries + first * m.row_stride;
  int64_t column = 0;
  for (int i = 0; i < runs.count; ++i) {
    const Run run = runs.list[i];
    product<kPairs, Order::kRows, Into::kSet>(
        queries, m.row_stride, m.keys + run.first * deep<kPairs>(padded),
        deep<kPairs>(padded) * kPanel, rows, run.count, deep<kPairs>(width), m.scores + column,
        m.score_stride);
    const int64_t end = column + run.count;
    column += whole_panels(run.count);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = end; c < column; ++c) m.scores[r * m.score_stride + c] = -kInfinity;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    m.factor[r] = softmax_row<kPairs>(m.scores + r * m.score_stride, column, scale,
                                      m.top[first + r], m.sum[first + r]);
  }
  column = 0;
  for (int i = 0; i < runs.count; ++i) {
    const Run run = runs.list[i];
    const float* values = m.values + deep<kPairs>(run.first) * kPanel;
    const float* probs = m.scores + deep<kPairs>(column);
    const int64_t panel = deep<kPairs>(packed_keys) * kPanel, depth = deep<kPairs>(run.count);
    if (i == 0) {
      product<kPairs, Order::kRows, Into::kScaledAdd>(probs, m.score_stride, values, panel, rows,
                                                      padded, depth, out, padded, m.factor);
    } else {
      product<kPairs, Order::kRows, Into::kAdd>(probs, m.score_stride, values, panel, rows, padded,
                                                depth, out, padded);
    }
    column += whole_panels(run.count);
  }
}

// A group of keys and values as the right sides of the two products.
template <class T>
VIDGEN_INLINE void pack(const AttentionForward& a, const Memory& m, int64_t b, int64_t h,
                        int64_t key, int64_t keys, int64_t padded) {
  const int64_t packed_keys = whole_panels(keys);
  std::memset(m.rows + keys * m.row_stride, 0,
              std::size_t((packed_keys - keys) * m.row_stride) * sizeof(float));
  if constexpr (kInPairs<T>) {
    narrow<T>(a.k, b, h, key, keys, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded / 2, m.keys);
    narrow<T>(a.v, b, h, key, keys, m.rows, m.row_stride);
    pack_row_pairs(m.rows, m.row_stride, packed_keys, padded, m.values);
  } else {
    widen<T>(a.k, b, h, key, keys, 1.0f, m.rows, m.row_stride);
    pack_transposed(m.rows, m.row_stride, packed_keys, padded, m.keys);
    widen<T>(a.v, b, h, key, keys, 1.0f, m.rows, m.row_stride);
    pack_rows(m.rows, m.row_stride, keys, packed_keys, padded, m.values);
  }
}

template <class T>
VIDGEN_INLINE void write(const AttentionForward& a, const Memory& m, int64_t b, int64_t h,
                         int64_t first, int64_t rows, int64_t padded) {
  const int64_t width = a.q.size[3];
  float* lse = floats(a.lse) + (b * a.q.size[2] + h) * a.q.size[1] + first;
  for (int64_t r = 0; r < rows; ++r) {
    const float total = m.sum[r];
    const float* from = m.out + r * padded;
    T* to = row<T>(a.out, b, first + r, h);
    const bool empty = m.top[r] == -kInfinity && total == 0.0f;
    lse[r] = empty ? -kInfinity : m.top[r] == -kInfinity ? total : m.top[r] * kLn2 + logf(total);
    const Floats inverse = spread(empty ? 0.0f : 1.0f / total);
    over_vectors(width, [&](auto at, int) VIDGEN_LAMBDA { at.store(to, at.load(from) * inverse); });
  }
}

template <class T>
VIDGEN_INLINE void job(const AttentionForward& a, int64_t b, int64_t h, int64_t first) {
  const int64_t width = a.q.size[3];
  const int64_t padded = whole_panels(width);
  const int64_t rows = smaller(kJobQueries, a.q.size[1] - first);
  const int64_t length = keys_of_sample(a.key_lengths, b, a.k.size[1]);
  const int64_t group = group_of_keys(padded);
  Carver sizes(nullptr);
  Memory{sizes, padded, group};
  Carver carver(scratch(sizes.used()));
  const Memory m(carver, padded, group);

  // In pairs the queries stay as they are, and the scores are scaled.
  constexpr bool kPairs = kInPairs<T>;
  const float scale = a.scale * kLog2E;
  if constexpr (kPairs) {
    narrow<T>(a.q, b, h, first, rows, m.queries, m.row_stride);
  } else {
    widen<T>(a.q, b, h, first, rows, scale, m.queries, m.row_stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    m.top[r] = -kInfinity;
    m.sum[r] = 0.0f;
  }
  std::memset(m.out, 0, std::size_t(rows * padded) * sizeof(float));
  for (int64_t key = 0; key < length; key += group) {
    const int64_t keys = smaller(group, length - key);
    const int64_t packed_keys = whole_panels(keys);
    bool packed = false;
    for (int64_t query = 0; query < rows; query += kMaskQueries) {
      const Runs runs(a.blocks, b, h, first + query, key, keys);
      if (runs.count == 0) continue;
      if (!packed) {
        pack<T>(a, m, b, h, key, keys, padded);
        packed = true;
      }
      const int64_t end = smaller(rows, query + kMaskQueries);
      for (int64_t r = query; r < end; r += kQueries) {
        attend<kPairs>(m, runs, r, smaller(kQueries, end - r), width, padded, packed_keys, scale);
      }
    }
  }
  with_type(a.out.dtype, [&](auto type) VIDGEN_LAMBDA {
    write<decltype(type)>(a, m, b, h, first, rows, padded);
  });
}

}  // namespace

void attention_forward(const AttentionForward& a, int threads) {
  const int64_t heads = a.q.size[2];
  const int64_t jobs = divided_up(a.q.size[1], kJobQueries);
  with_type(a.q.dtype, [&](auto type) {
    in_parallel(a.q.size[0] * heads * jobs, threads, [&](int64_t n) {
      job<decltype(type)>(a, n / jobs / heads, n / jobs % heads, n % jobs * kJobQueries);
    });
  });
}

}  // namespace vidgen::cpu::VIDGEN_ISA
