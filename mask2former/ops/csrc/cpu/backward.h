// Backward kernel of one (batch item, head, level). Its part of value is packed into a dense map with a border of one
// pixel of zeros and channels padded to the vector width: no bounds checks, no tails, and gradients accumulate in the
// compute type in memory that no other thread writes. The order of summation is fixed, whatever the number of threads.
#pragma once

#include "locate.h"
#include "problem.h"
#include "simd.h"

namespace {

constexpr int64_t kQueryBlock = 32;

// Channels in the packed map: a multiple of the widest step used for that count.
inline int64_t padded_channels(int64_t channels) {
  const int64_t step = channels <= 8 ? 8 : channels <= 16 ? 16 : 32;
  return (channels + step - 1) / step * step;
}

// T: compute type. Arrays of `n` = kQueryBlock * P points unless said otherwise.
template <class T>
struct BackwardScratch {
  T *value, *grad;    // packed maps ((H + 2) * (W + 2), padded D)
  T* grad_output;     // (kQueryBlock, padded D)
  T *x, *y, *weight;  // in: normalised locations and weights; x and y become the fractions right of and below corner 0
  T *factor;          // weight, or 0 for a point outside (see locate.h)
  T* inside;          // 1 or 0
  typename IntOf<T>::type* pixel;  // packed index of corner 0
  T* dot[4];          // (n, 4) partial sums of grad_output . value at corner k
  T *grad_x, *grad_y, *grad_weight;

  static size_t layout(Arena* arena, int64_t pixels, int64_t channels, int64_t points, BackwardScratch* scratch) {
    const int64_t n = padded_points(kQueryBlock * points);
    BackwardScratch s;
    s.value = arena->take<T>(pixels * channels);
    s.grad = arena->take<T>(pixels * channels);
    s.grad_output = arena->take<T>(kQueryBlock * channels);
    T** const per_point[] = {&s.x, &s.y, &s.weight, &s.factor, &s.inside, &s.grad_x, &s.grad_y, &s.grad_weight};
    for (T** array : per_point) *array = arena->take<T>(n);
    s.pixel = arena->take<typename IntOf<T>::type>(n);
    for (int k = 0; k < 4; ++k) s.dot[k] = arena->take<T>(n * 4);
    if (scratch) *scratch = s;
    return arena->used();
  }
};

// What is the same for every block of queries of a slice.
struct Slice {
  int64_t height, width, start;     // of the level; start: its first token
  int64_t packed_width, channels;   // of the packed map
  int64_t batch, head, level;
};

template <class E, class T>
void pack_value(const m2f::Problem& pb, const Slice& sl, const BackwardScratch<T>& s) {
  const size_t bytes = (sl.height + 2) * sl.packed_width * sl.channels * sizeof(T);
  memset(s.value, 0, bytes);
  memset(s.grad, 0, bytes);
  const int64_t token = pb.heads * pb.channels;
  const E* from = static_cast<const E*>(pb.value) + (sl.batch * pb.tokens + sl.start) * token + sl.head * pb.channels;
  for (int64_t y = 0; y < sl.height; ++y) {
    T* to = s.value + ((y + 1) * sl.packed_width + 1) * sl.channels;
    for (int64_t x = 0; x < sl.width; ++x, from += token, to += sl.channels) {
      for (int64_t c = 0; c < pb.channels; ++c) to[c] = read(from + c);
    }
  }
}

template <class E, class T>
void unpack_grad(const m2f::Problem& pb, const Slice& sl, const BackwardScratch<T>& s) {
  const int64_t token = pb.heads * pb.channels;
  E* to = static_cast<E*>(pb.grad_value) + (sl.batch * pb.tokens + sl.start) * token + sl.head * pb.channels;
  for (int64_t y = 0; y < sl.height; ++y) {
    const T* from = s.grad + ((y + 1) * sl.packed_width + 1) * sl.channels;
    for (int64_t x = 0; x < sl.width; ++x, to += token, from += sl.channels) {
      for (int64_t c = 0; c < pb.channels; ++c) write(to + c, from[c]);
    }
  }
}

// Index of the first point of (query, head, level) in the arrays of weights.
inline int64_t point_index(const m2f::Problem& pb, const Slice& sl, int64_t query) {
  return (((sl.batch * pb.queries + query) * pb.heads + sl.head) * pb.levels + sl.level) * pb.points;
}

template <class E, class T>
void read_block(const m2f::Problem& pb, const Slice& sl, const BackwardScratch<T>& s, int64_t begin, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = point_index(pb, sl, begin + j);
    const T* locations = static_cast<const T*>(pb.locations) + 2 * first;
    const T* weights = static_cast<const T*>(pb.weights) + first;
    split_xy(locations, pb.points, s.x + j * pb.points, s.y + j * pb.points);
    memcpy(s.weight + j * pb.points, weights, pb.points * sizeof(T));
    const E* from = static_cast<const E*>(pb.grad_output) +
                    ((sl.batch * pb.queries + begin + j) * pb.heads + sl.head) * pb.channels;
    T* to = s.grad_output + j * sl.channels;
    for (int64_t c = 0; c < pb.channels; ++c) to[c] = read(from + c);
    for (int64_t c = pb.channels; c < sl.channels; ++c) to[c] = T(0);
  }
}

template <class T>
void plan_block(const Slice& sl, const BackwardScratch<T>& s, int64_t n) {
  constexpr int N = kTogether<T>;
  using Int = typename IntOf<T>::type;
  const Floats<T> width = splat(static_cast<T>(sl.width)), height = splat(static_cast<T>(sl.height));
  const Int packed_width = static_cast<Int>(sl.packed_width);
  for (int64_t i = 0; i < n; i += N) {
    const auto at = locate<T>(load<N>(s.x + i), load<N>(s.y + i), width, height);
    store<N>(s.x + i, at.right);
    store<N>(s.y + i, at.lower);
    store<N>(s.factor + i, at.inside ? load<N>(s.weight + i) : at.outside);
    store<N>(s.inside + i, at.inside ? splat(T(1)) : at.outside);
    store<N>(s.pixel + i, (at.y + 1) * packed_width + at.x + 1);
  }
}

// W: channels a step, W divides the padded channels. Scatters into the gradient map and takes the four dot products.
template <int W, class T>
void scatter_block(const Slice& sl, const BackwardScratch<T>& s, int64_t queries, int64_t points) {
  constexpr int N = lanes<T, W>(), R = W / N;
  const int64_t step[4] = {0, sl.channels, sl.packed_width * sl.channels, (sl.packed_width + 1) * sl.channels};
  for (int64_t i = 0; i < queries * points; ++i) {
    const T right = s.x[i], lower = s.y[i], a = s.factor[i];
    const T corner[4] = {(T(1) - lower) * (T(1) - right) * a, (T(1) - lower) * right * a,
                         lower * (T(1) - right) * a, lower * right * a};
    const T* grad_output = s.grad_output + i / points * sl.channels;
    const int64_t offset = s.pixel[i] * sl.channels;
    Vec<T, N> dot[4] = {};
    for (int64_t c = 0; c < sl.channels; c += W) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = c + r * N;
        const Vec<T, N> g = load<N>(grad_output + at);
        for (int k = 0; k < 4; ++k) {
          dot[k] += g * load<N>(s.value + offset + step[k] + at);
          T* grad = s.grad + offset + step[k] + at;
          store<N>(grad, load<N>(grad) + corner[k] * g);
        }
      }
    }
    for (int k = 0; k < 4; ++k) store<4>(s.dot[k] + 4 * i, Fold<T, N>::run(dot[k]));
  }
}

template <class T>
M2F_INLINE T sum_of_four(const T* v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}

template <class T>
void finish_block(const Slice& sl, const BackwardScratch<T>& s, int64_t n) {
  const T width = static_cast<T>(sl.width), height = static_cast<T>(sl.height);
  for (int64_t i = 0; i < n; ++i) {
    const T right = s.x[i], lower = s.y[i], a = s.factor[i];
    const T d0 = sum_of_four(s.dot[0] + 4 * i), d1 = sum_of_four(s.dot[1] + 4 * i);
    const T d2 = sum_of_four(s.dot[2] + 4 * i), d3 = sum_of_four(s.dot[3] + 4 * i);
    const T upper_row = (T(1) - right) * d0 + right * d1, lower_row = (T(1) - right) * d2 + right * d3;
    s.grad_weight[i] = s.inside[i] * ((T(1) - lower) * upper_row + lower * lower_row);
    s.grad_x[i] = a * width * ((T(1) - lower) * (d1 - d0) + lower * (d3 - d2));
    s.grad_y[i] = a * height * (lower_row - upper_row);
  }
}

template <class T>
void write_block(const m2f::Problem& pb, const Slice& sl, const BackwardScratch<T>& s, int64_t begin, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = point_index(pb, sl, begin + j), from = j * pb.points;
    T* locations = static_cast<T*>(pb.grad_locations) + 2 * first;
    T* weights = static_cast<T*>(pb.grad_weights) + first;
    for (int64_t p = 0; p < pb.points; ++p) {
      locations[2 * p] = s.grad_x[from + p];
      locations[2 * p + 1] = s.grad_y[from + p];
      weights[p] = s.grad_weight[from + p];
    }
  }
}

template <class E>
size_t backward_scratch_of(const m2f::Problem& pb) {
  int64_t pixels = 0;
  for (int64_t l = 0; l < pb.levels; ++l) {
    const int64_t padded = (pb.shapes[2 * l] + 2) * (pb.shapes[2 * l + 1] + 2);
    pixels = padded > pixels ? padded : pixels;
  }
  Arena arena(nullptr);
  using Scratch = BackwardScratch<typename Compute<E>::type>;
  return Scratch::layout(&arena, pixels, padded_channels(pb.channels), pb.points, nullptr);
}

template <class E>
void backward_slice_of(const m2f::Problem& pb, int64_t batch, int64_t head, int64_t level, void* scratch) {
  using T = typename Compute<E>::type;
  Slice sl = {pb.shapes[2 * level], pb.shapes[2 * level + 1], 0, 0, padded_channels(pb.channels), batch, head, level};
  for (int64_t l = 0; l < level; ++l) sl.start += pb.shapes[2 * l] * pb.shapes[2 * l + 1];
  sl.packed_width = sl.width + 2;
  Arena arena(scratch);
  BackwardScratch<T> s;
  BackwardScratch<T>::layout(&arena, (sl.height + 2) * sl.packed_width, sl.channels, pb.points, &s);
  pack_value<E>(pb, sl, s);
  for (int64_t begin = 0; begin < pb.queries; begin += kQueryBlock) {
    const int64_t left = pb.queries - begin, count = left < kQueryBlock ? left : kQueryBlock;
    read_block<E>(pb, sl, s, begin, count);
    plan_block(sl, s, count * pb.points);
    switch (sl.channels) {
      case 8: scatter_block<8>(sl, s, count, pb.points); break;
      case 16: scatter_block<16>(sl, s, count, pb.points); break;
      default: scatter_block<32>(sl, s, count, pb.points);
    }
    finish_block(sl, s, count * pb.points);
    write_block(pb, sl, s, begin, count);
  }
  unpack_grad<E>(pb, sl, s);
}

}  // namespace
