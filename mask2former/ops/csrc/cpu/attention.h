// Softmax attention of a few queries to many tokens, each of which a query sees or not. Blocks of tokens go through the
// cache once for all queries; the softmax follows them with a running maximum (arXiv:1805.02867), so that no row of
// scores is ever stored.
#pragma once

#include "problem.h"
#include "simd.h"

namespace {

constexpr int kAttentionRows = 6;    // queries that share what is loaded of a block: 12 registers of sums
constexpr int kAttentionTokens = 64;  // of a block: its keys, values and scores stay in the first cache
constexpr float kInfinity = __builtin_inff();

// Sums in the layout of one thread's scratch; rows are padded to a multiple of kAttentionRows.
struct AttentionScratch {
  float* queries;  // (rows, D), times the scale of scores
  float* keys;     // (D, kAttentionTokens)
  float* values;   // (kAttentionTokens, D)
  float* scores;   // (kAttentionRows, kAttentionTokens)
  float* sums;     // (rows, D), of values times weights
  float* totals;   // (rows, a register), of weights
  float* maxima;   // (rows), of scores

  static size_t layout(const m2f::AttentionProblem& pb, void* base, AttentionScratch* out) {
    Arena arena(base);
    const int64_t rows = (pb.query_block + kAttentionRows - 1) / kAttentionRows * kAttentionRows;
    *out = {arena.take<float>(rows * pb.channels),
            arena.take<float>(kAttentionTokens * pb.channels),
            arena.take<float>(kAttentionTokens * pb.channels),
            arena.take<float>(kAttentionRows * kAttentionTokens),
            arena.take<float>(rows * pb.channels),
            arena.take<float>(rows * lanes<float, 16>()),
            arena.take<float>(rows)};
    return arena.used();
  }
};

size_t attention_scratch(const m2f::AttentionProblem& pb) {
  AttentionScratch unused;
  return AttentionScratch::layout(pb, nullptr, &unused);
}

// c (kAttentionRows, columns) = a (kAttentionRows, depth) times b (depth, columns), added to c or instead of it.
template <bool kAdd>
M2F_INLINE void multiply_rows(const float* __restrict a, int64_t depth, const float* __restrict b, int64_t columns,
                              float* __restrict c) {
  constexpr int N = lanes<float, 16>();
  for (int64_t x = 0; x < columns; x += 2 * N) {
    Vec<float, N> sums[kAttentionRows][2];
    for (int r = 0; r < kAttentionRows; ++r) {
      for (int i = 0; i < 2; ++i) sums[r][i] = kAdd ? load<N>(c + r * columns + x + i * N) : Vec<float, N>{};
    }
    for (int64_t k = 0; k < depth; ++k) {
      const Vec<float, N> left = load<N>(b + k * columns + x), right = load<N>(b + k * columns + x + N);
      for (int r = 0; r < kAttentionRows; ++r) {
        const float factor = a[r * depth + k];
        sums[r][0] += left * factor;
        sums[r][1] += right * factor;
      }
    }
    for (int r = 0; r < kAttentionRows; ++r) {
      for (int i = 0; i < 2; ++i) store<N>(c + r * columns + x + i * N, sums[r][i]);
    }
  }
}

// Copies what a head has of `count` tokens; what is left of the block is zero. The rows of a head lie far apart, which
// no processor foresees: those of the next block are asked for by name.
template <class T>
M2F_INLINE void load_block(const m2f::AttentionProblem& pb, const T* keys, const T* values, int64_t count,
                           const AttentionScratch& at) {
  constexpr int N = lanes<float, 16>();
  const int64_t stride = pb.heads * pb.channels, channels = pb.channels;
  for (int64_t s = 0; s < count; ++s) {
    const T *key = keys + s * stride, *value = values + s * stride;
    for (int64_t d = 0; d < channels; d += N) {
      __builtin_prefetch(key + kAttentionTokens * stride + d);
      __builtin_prefetch(value + kAttentionTokens * stride + d);
      const Vec<float, N> part = load<N>(key + d);
      for (int i = 0; i < N; ++i) at.keys[(d + i) * kAttentionTokens + s] = part[i];
      store<N>(at.values + s * channels + d, load<N>(value + d));
    }
  }
  for (int64_t s = count; s < kAttentionTokens; ++s) {
    for (int64_t d = 0; d < channels; ++d) at.keys[d * kAttentionTokens + s] = at.values[s * channels + d] = 0;
  }
}

M2F_INLINE bool sees_any(const uint8_t* seen, int64_t count) {
  uint8_t any = 0;
  for (int64_t s = 0; s < count; ++s) any |= seen[s];
  return any != 0;
}

template <int N>
M2F_INLINE Vec<uint8_t, N> bytes_at(const uint8_t* from) {
  Vec<uint8_t, N> out;
  memcpy(&out, from, sizeof(out));
  return out;
}

template <int N>
M2F_INLINE bool any_of(Vec<int32_t, N> is) {
  uint64_t halves[N / 2], any = 0;
  memcpy(halves, &is, sizeof(is));
  for (int i = 0; i < N / 2; ++i) any |= halves[i];
  return any != 0;
}

// Turns the scores of a block into weights relative to the row's largest score so far, and its sums with them.
M2F_INLINE void weigh_row(const AttentionScratch& at, int64_t row, float* scores, const uint8_t* seen, int64_t count,
                          int64_t channels) {
  constexpr int N = lanes<float, 16>();
  typedef Vec<float, N> Float;
  typedef Vec<int32_t, N> Int;
  Int lane;
  for (int i = 0; i < N; ++i) lane[i] = i;
  const Float unseen = Float{} - kInfinity;
  Float largest = unseen;
  for (int64_t s = 0; s < kAttentionTokens; s += N) {
    Float score = load<N>(scores + s);
    if (seen != nullptr && count - s >= N) {
      const Vec<uint8_t, N> bytes = bytes_at<N>(seen + s);
      score = __builtin_convertvector(bytes, Int) != 0 ? score : unseen;
    } else if (count - s < N) {
      Vec<uint8_t, N> bytes = Vec<uint8_t, N>{} + static_cast<uint8_t>(1);
      if (seen != nullptr && s < count) memcpy(&bytes, seen + s, static_cast<size_t>(count - s));
      score = ((__builtin_convertvector(bytes, Int) != 0) & (lane < static_cast<int32_t>(count - s))) ? score : unseen;
    }
    store<N>(scores + s, score);
    largest = score > largest ? score : largest;
  }
  float* totals = at.totals + row * N;
  Float total = load<N>(totals);
  float maximum = at.maxima[row];
  if (any_of<N>(largest > maximum)) {  // seldom, after the first blocks
    for (int i = 0; i < N; ++i) maximum = largest[i] > maximum ? largest[i] : maximum;
    const Float rescale = exp_of<N>(Float{} + (at.maxima[row] - maximum));
    float* sums = at.sums + row * channels;
    for (int64_t d = 0; d < channels; d += N) store<N>(sums + d, load<N>(sums + d) * rescale);
    total *= rescale;
    at.maxima[row] = maximum;
  }
  const float base = maximum == -kInfinity ? 0 : maximum;  // where nothing was seen yet, all weights are zero
  for (int64_t s = 0; s < kAttentionTokens; s += N) {
    const Float weight = exp_of<N>(load<N>(scores + s) - base);
    store<N>(scores + s, weight);
    total += weight;
  }
  store<N>(totals, total);
}

// The queries [begin, end) of one head.
template <class T>
void attention_of(const m2f::AttentionProblem& pb, int64_t batch, int64_t head, int64_t begin, int64_t end,
                  void* scratch) {
  constexpr int N = lanes<float, 16>();
  AttentionScratch at;
  AttentionScratch::layout(pb, scratch, &at);
  const int64_t channels = pb.channels, width = pb.heads * channels, count = end - begin;
  const int64_t rows = (count + kAttentionRows - 1) / kAttentionRows * kAttentionRows;
  const T* query = static_cast<const T*>(pb.query) + (batch * pb.queries + begin) * width + head * channels;
  const T* key = static_cast<const T*>(pb.key) + batch * pb.tokens * width + head * channels;
  const T* value = static_cast<const T*>(pb.value) + batch * pb.tokens * width + head * channels;
  const uint8_t* seen = pb.seen ? pb.seen + (batch * pb.queries + begin) * pb.tokens : nullptr;
  for (int64_t q = 0; q < rows; ++q) {
    for (int64_t d = 0; d < channels; ++d) {
      at.queries[q * channels + d] = q < count ? read(query + q * width + d) * pb.scale : 0;
      at.sums[q * channels + d] = 0;
    }
    for (int i = 0; i < N; ++i) at.totals[q * N + i] = 0;
    at.maxima[q] = -kInfinity;
  }
  for (int64_t first = 0; first < pb.tokens; first += kAttentionTokens) {
    const int64_t tokens = pb.tokens - first < kAttentionTokens ? pb.tokens - first : kAttentionTokens;
    load_block(pb, key + first * width, value + first * width, tokens, at);
    for (int64_t row = 0; row < count; row += kAttentionRows) {
      const int64_t used = count - row < kAttentionRows ? count - row : kAttentionRows;
      bool wanted = seen == nullptr;
      for (int64_t r = 0; r < used && !wanted; ++r) wanted = sees_any(seen + (row + r) * pb.tokens + first, tokens);
      if (!wanted) continue;
      multiply_rows<false>(at.queries + row * channels, channels, at.keys, kAttentionTokens, at.scores);
      for (int64_t r = 0; r < used; ++r) {
        weigh_row(at, row + r, at.scores + r * kAttentionTokens,
                  seen ? seen + (row + r) * pb.tokens + first : nullptr, tokens, channels);
      }
      multiply_rows<true>(at.scores, kAttentionTokens, at.values, channels, at.sums + row * channels);
    }
  }
  float* output = pb.output + (batch * pb.queries + begin) * width + head * channels;
  for (int64_t q = 0; q < count; ++q) {
    float total = 0;
    for (int i = 0; i < N; ++i) total += at.totals[q * N + i];
    for (int64_t d = 0; d < channels; ++d) output[q * width + d] = at.sums[q * channels + d] / total;
  }
}

}  // namespace
