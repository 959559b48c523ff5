// Masks at the output's size: two interpolations, the sigmoid, the decision and its sums in one pass over a strip of rows;
// and whose each pixel is where masks may not overlap.
#pragma once

#include "problem.h"
#include "simd.h"

namespace {

struct MaskRows {
  int64_t first, count, length;  // map rows that a strip depends on; the length of one at the output's width, padded
};

MaskRows mask_rows_of(const m2f::MaskProblem& pb) {
  int64_t first = pb.map_height, last = 0;
  for (int64_t y = pb.begin; y < pb.end; ++y) {
    first = pb.row_first[y] < first ? pb.row_first[y] : first;
    last = pb.row_first[y] > last ? pb.row_first[y] : last;
  }
  return {first, last + pb.row_taps - first, (pb.width + 15) / 16 * 16};
}

size_t mask_scratch(const m2f::MaskProblem& pb) {
  const MaskRows rows = mask_rows_of(pb);
  return static_cast<size_t>(rows.count * rows.length) * sizeof(float);
}

M2F_INLINE void widen_row(const m2f::MaskProblem& pb, const float* __restrict row, float* __restrict out) {
  const int32_t* __restrict first = pb.column_first;
  for (int64_t x = 0; x < pb.width; ++x) out[x] = row[first[x]] * pb.column_weights[x];
  for (int64_t t = 1; t < pb.column_taps; ++t) {
    const float* __restrict weights = pb.column_weights + t * pb.width;
    for (int64_t x = 0; x < pb.width; ++x) out[x] += row[first[x] + t] * weights[x];
  }
}

// One mask; the order of its sums is always the same.
void mask_strip(const m2f::MaskProblem& pb, int64_t mask, void* scratch) {
  constexpr int N = lanes<float, 16>();
  typedef Vec<float, N> Float;
  typedef Vec<int32_t, N> Int;
  const MaskRows rows = mask_rows_of(pb);
  float* widened = static_cast<float*>(scratch);
  for (int64_t i = 0; i < rows.count; ++i) {
    float* out = widened + i * rows.length;
    widen_row(pb, pb.maps + (mask * pb.map_height + rows.first + i) * pb.map_width, out);
    for (int64_t x = pb.width; x < rows.length; ++x) out[x] = 0;
  }
  const Float zero = {}, one = zero + 1.0f, least = zero + pb.least_logit;
  Int lane;
  for (int i = 0; i < N; ++i) lane[i] = i;
  double total = 0;
  int64_t area = 0;
  for (int64_t y = pb.begin; y < pb.end; ++y) {
    const float* from = widened + (pb.row_first[y] - rows.first) * rows.length;
    const float* weights = pb.row_weights + y * pb.row_taps;
    const int64_t place = (mask * (pb.end - pb.begin) + y - pb.begin) * pb.width;
    Float sum = zero;
    Int count = {};
    for (int64_t x = 0; x < pb.width; x += N) {
      Float logit = load<N>(from + x) * weights[0];
      for (int64_t t = 1; t < pb.row_taps; ++t) logit += load<N>(from + t * rows.length + x) * weights[t];
      const Float power = exp_of<N>(logit < zero ? logit : -logit);
      const Float prob = (logit < zero ? power : one) / (one + power);
      const Int is_inside = (logit > least) & (lane < static_cast<int32_t>(pb.width - x));
      const Vec<uint8_t, N> inside = __builtin_convertvector(is_inside & 1, Vec<uint8_t, N>);
      sum += is_inside ? prob : zero;
      count -= is_inside;
      const size_t num = static_cast<size_t>(pb.width - x < N ? pb.width - x : N);
      if (num == N) {  // of a size known to the compiler
        memcpy(pb.probs + place + x, &prob, sizeof(prob));
        memcpy(pb.insides + place + x, &inside, sizeof(inside));
      } else {
        memcpy(pb.probs + place + x, &prob, num * sizeof(float));
        memcpy(pb.insides + place + x, &inside, num);
      }
    }
    for (int i = 0; i < N; ++i) {
      total += sum[i];
      area += count[i];
    }
  }
  pb.sums[2 * mask] = static_cast<float>(total);
  pb.sums[2 * mask + 1] = static_cast<float>(area);
}

// The lanes of pixel p on: which mask has the largest product of probability and weight, the first of equal ones (NaN is
// the largest, as in torch), and whether the pixel is inside it. Adds the pixels inside each mask to `areas`.
template <int N>
M2F_INLINE Vec<int32_t, N> winners_at(const m2f::WinnerProblem& pb, int64_t p, Vec<int32_t, N> is_pixel,
                                      Vec<int32_t, N>* areas) {
  typedef Vec<float, N> Float;
  typedef Vec<int32_t, N> Int;
  const size_t bytes = static_cast<size_t>(pb.pixels - p < N ? pb.pixels - p : N) * sizeof(float);
  Float best = {};
  Int number = {};
  for (int64_t g = 0; g < pb.masks; ++g) {
    Float prob = {};
    const float* from = pb.probs + g * pb.pixels + p;
    if (bytes == sizeof(prob)) {  // a size known to the compiler
      memcpy(&prob, from, sizeof(prob));
    } else {
      memcpy(&prob, from, bytes);
    }
    const Float score = prob * pb.weights[g];
    const Int inside = (prob >= pb.threshold) & is_pixel;
    const Int wins = g == 0 ? Int{} - 1 : (score > best) | ((score != score) & (best == best));
    best = wins ? score : best;
    number = wins ? Int{} + static_cast<int32_t>(2 * g) - inside : number;
    areas[g] -= inside;
  }
  return number;
}

void winners_block(const m2f::WinnerProblem& pb, int64_t begin, int64_t end, int64_t* counts, void* scratch) {
  constexpr int N = lanes<float, 16>();
  typedef Vec<int32_t, N> Int;
  Int* areas = static_cast<Int*>(scratch);
  Int lane;
  for (int i = 0; i < N; ++i) lane[i] = i;
  for (int64_t g = 0; g < pb.masks; ++g) areas[g] = Int{};
  for (int64_t i = 0; i < 3 * pb.masks; ++i) counts[i] = 0;
  for (int64_t p = begin; p < end; p += N) {
    const int64_t left = end - p < N ? end - p : N;
    const Int numbers = winners_at<N>(pb, p, lane < static_cast<int32_t>(left), areas);
    for (int64_t i = 0; i < left; ++i) {
      pb.numbers[p + i] = numbers[i];
      ++counts[numbers[i]];
    }
  }
  for (int64_t g = 0; g < pb.masks; ++g) {
    for (int i = 0; i < N; ++i) counts[2 * pb.masks + g] += areas[g][i];
  }
}

size_t winners_scratch(const m2f::WinnerProblem& pb) {
  return static_cast<size_t>(pb.masks) * lanes<float, 16>() * sizeof(int32_t);
}

}  // namespace
