// Dilated neighbourhood attention (arXiv:2209.15001) of one residue class of positions, where it is attention to k x k
// neighbouring keys: what a task needs of the class is packed, so that the dilation is gone. Scores of a window are
// computed a row at a time, one lane for each key; sums of values, one lane for each channel. The order of summation is
// fixed, whatever the number of threads.
#pragma once

#include <initializer_list>

#include "backward.h"
#include "locate.h"
#include "problem.h"
#include "simd.h"

namespace {

// A residue class along one axis: how many keys and queries it has, and the first key of a query's window.
struct ClassAxis {
  int64_t residue, dilation, kernel, keys, queries;

  ClassAxis(int64_t residue, int64_t num_keys, int64_t num_queries, const m2f::NeighbourhoodProblem& pb)
      : residue(residue), dilation(pb.dilation), kernel(pb.kernel), keys(count(num_keys)), queries(count(num_queries)) {}
  int64_t count(int64_t length) const { return length > residue ? (length - residue + dilation - 1) / dilation : 0; }
  int64_t start(int64_t number) const {
    const int64_t first = number - kernel / 2, last = keys - kernel;
    return first < 0 ? 0 : first > last ? last : first;
  }
  int64_t position(int64_t number) const { return number * dilation + residue; }
};

// Keys of a window's row, padded to whole registers of at most 16 lanes.
template <class T>
int64_t window_lanes(int64_t kernel) {
  const int64_t step = kernel <= 8 ? lanes<T, 8>() : lanes<T, 16>();
  return (kernel + step - 1) / step * step;
}

// Rows of a class of keys or values, packed: channels side by side, or a map for each channel.
struct Packing {
  int64_t columns, channels;  // side by side: channels padded
  int64_t lane_columns;       // of a channel's row, which is read beyond its end
};

template <class T>
Packing packing_of(const m2f::NeighbourhoodProblem& pb) {
  const int64_t columns = (pb.width + pb.dilation - 1) / pb.dilation;
  return {columns, padded_channels(pb.channels), columns + window_lanes<T>(pb.kernel)};
}

// Both packings of the rows [begin, end) of a class; a null pointer leaves one out.
template <class E, class T>
void pack_rows(const m2f::NeighbourhoodProblem& pb, const void* map, const int64_t* strides, int64_t batch, int64_t head,
               const ClassAxis& y, const ClassAxis& x, int64_t begin, int64_t end, const Packing& at, T* beside,
               T* by_channel) {
  const E* base = static_cast<const E*>(map) + batch * strides[0] + head * strides[3];
  for (int64_t row = begin; row < end; ++row) {
    const E* from_row = base + y.position(row) * strides[1];
    T* to = beside ? beside + (row - begin) * at.columns * at.channels : nullptr;
    T* planes = by_channel ? by_channel + (row - begin) * pb.channels * at.lane_columns : nullptr;
    if (planes) memset(planes, 0, pb.channels * at.lane_columns * sizeof(T));
    for (int64_t column = 0; column < x.keys; ++column) {
      const E* from = from_row + x.position(column) * strides[2];
      if (to) {
        T* pixel = to + column * at.channels;
        for (int64_t c = 0; c < pb.channels; ++c) pixel[c] = read(from + c);
        for (int64_t c = pb.channels; c < at.channels; ++c) pixel[c] = T(0);
      }
      if (planes) {
        for (int64_t c = 0; c < pb.channels; ++c) planes[c * at.lane_columns + column] = read(from + c);
      }
    }
  }
}

// The products of one vector with the keys of J rows of a window, N columns of it.
template <int N, int J, class T>
M2F_INLINE void multiply_window_rows(const T* __restrict vector, int64_t channels, const T* __restrict planes,
                                     int64_t lane_columns, T* __restrict out, int64_t out_stride) {
  Vec<T, N> sum[J] = {};
  const int64_t row = channels * lane_columns;
  for (int64_t c = 0; c < channels; ++c) {
    const T factor = vector[c];
    for (int j = 0; j < J; ++j) sum[j] += factor * load<N>(planes + j * row + c * lane_columns);
  }
  for (int j = 0; j < J; ++j) store<N>(out + j * out_stride, sum[j]);
}

// The products of one vector with all keys of a window: (k, window_lanes), of which the last lanes mean nothing. Where
// the rows do not divide evenly, the last ones are computed twice.
template <int N, class T>
M2F_INLINE void multiply_window(const T* vector, int64_t channels, int64_t kernel, const T* planes,
                                int64_t lane_columns, T* out, int64_t out_stride) {
  for (int64_t i = 0; i < out_stride; i += N) {
    for (int64_t j = 0; j < kernel;) {
      const int64_t left = kernel - j;
      const int64_t group = kernel >= 6 ? 6 : kernel >= 3 ? 3 : 1, first = left < group ? kernel - group : j;
      const T* from = planes + first * channels * lane_columns + i;
      T* to = out + first * out_stride + i;
      if (group == 6) multiply_window_rows<N, 6>(vector, channels, from, lane_columns, to, out_stride);
      if (group == 3) multiply_window_rows<N, 3>(vector, channels, from, lane_columns, to, out_stride);
      if (group == 1) multiply_window_rows<N, 1>(vector, channels, from, lane_columns, to, out_stride);
      j = first + group;
    }
  }
}

// The lanes of a window's row that are keys, from column `first` on.
template <int N, class T>
M2F_INLINE Vec<typename IntOf<T>::type, N> keys_among(int64_t kernel, int64_t first) {
  using Int = typename IntOf<T>::type;
  Vec<Int, N> lane;
  for (int i = 0; i < N; ++i) lane[i] = i;
  return lane < static_cast<Int>(kernel - first);
}

// Adds the bias to the products of a window and turns them into exponentials relative to the largest; returns their sum.
// Lanes that are no keys become zero.
template <int N, class T>
M2F_INLINE T exponentiate(T* scores, int64_t stride, int64_t kernel, const T* bias, int64_t side) {
  const Vec<T, N> unseen = Vec<T, N>{} - static_cast<T>(__builtin_inf());
  Vec<T, N> largest = unseen, total = {};
  for (int64_t j = 0; j < kernel; ++j) {
    for (int64_t i = 0; i < stride; i += N) {
      const Vec<T, N> score = load<N>(scores + j * stride + i) + load<N>(bias + j * side + i);
      const Vec<T, N> known = keys_among<N, T>(kernel, i) ? score : unseen;
      store<N>(scores + j * stride + i, known);
      largest = known > largest ? known : largest;
    }
  }
  T most = largest[0];
  for (int i = 1; i < N; ++i) most = largest[i] > most ? largest[i] : most;
  for (int64_t i = 0; i < kernel * stride; i += N) {
    const Vec<T, N> weight = exp_of<N>(load<N>(scores + i) - most);
    store<N>(scores + i, weight);
    total += weight;
  }
  T sum = total[0];
  for (int i = 1; i < N; ++i) sum += total[i];
  return sum;
}

// W channels of the sum over a window of weights times vectors. U sums at a time hide the time that an addition takes.
template <int W, class T>
M2F_INLINE void sum_window(const T* __restrict weights, int64_t stride, int64_t kernel, const T* __restrict vectors,
                           int64_t columns, int64_t channels, T* __restrict out) {
  constexpr int N = lanes<T, W>(), R = W / N, U = R >= 4 ? 1 : 4 / R;
  Vec<T, N> sum[U][R] = {};
  for (int64_t j = 0; j < kernel; ++j) {
    const T *row = vectors + j * columns * channels, *weight = weights + j * stride;
    int64_t i = 0;
    for (; i + U <= kernel; i += U) {
      for (int u = 0; u < U; ++u) {
        for (int r = 0; r < R; ++r) sum[u][r] += weight[i + u] * load<N>(row + (i + u) * channels + r * N);
      }
    }
    for (; i < kernel; ++i) {
      for (int r = 0; r < R; ++r) sum[0][r] += weight[i] * load<N>(row + i * channels + r * N);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int u = 1; u < U; ++u) sum[0][r] += sum[u][r];
    store<N>(out + r * N, sum[0][r]);
  }
}

template <class T>
M2F_INLINE void sum_window_channels(const T* weights, int64_t stride, int64_t kernel, const T* vectors, int64_t columns,
                                    int64_t channels, T* out) {
  switch (channels) {
    case 8: return sum_window<8>(weights, stride, kernel, vectors, columns, channels, out);
    case 16: return sum_window<16>(weights, stride, kernel, vectors, columns, channels, out);
  }
  for (int64_t c = 0; c < channels; c += 32) {
    sum_window<32>(weights, stride, kernel, vectors + c, columns, channels, out + c);
  }
}

// The bias of a head, so padded that a row can be read beyond its end.
template <class T>
int64_t bias_elements(int64_t kernel) {
  const int64_t side = 2 * kernel - 1;
  return side * side + window_lanes<T>(kernel);
}

template <class T>
void copy_bias(const m2f::NeighbourhoodProblem& pb, int64_t head, T* to) {
  const int64_t side = 2 * pb.kernel - 1, area = side * side;
  memcpy(to, static_cast<const T*>(pb.bias) + head * area, area * sizeof(T));
  memset(to + area, 0, (bias_elements<T>(pb.kernel) - area) * sizeof(T));
}

template <class T>
struct NeighbourhoodScratch {
  T *keys, *values;  // forward: keys by channel, values side by side; backward: both by channel
  T *keys_beside, *grad_keys, *grad_values;  // backward only, side by side
  T *bias, *grad_bias;
  T *query, *grad, *sum;       // of one query, channels padded
  T *weights, *grad_weights;  // (k, window_lanes)

  static size_t layout(const m2f::NeighbourhoodProblem& pb, void* base, NeighbourhoodScratch* s) {
    Arena arena(base);
    const Packing at = packing_of<T>(pb);
    const bool is_backward = pb.grad_output != nullptr;
    const int64_t class_rows = (pb.height + pb.dilation - 1) / pb.dilation;
    const int64_t task_rows = pb.row_block + pb.kernel - 1;
    const int64_t rows = is_backward || class_rows < task_rows ? class_rows : task_rows;
    const int64_t planes = rows * pb.channels * at.lane_columns, beside = rows * at.columns * at.channels;
    s->keys = arena.take<T>(planes);
    s->values = arena.take<T>(is_backward ? planes : beside);
    for (T** map : {&s->keys_beside, &s->grad_keys, &s->grad_values}) {
      *map = is_backward ? arena.take<T>(beside) : nullptr;
    }
    for (T** table : {&s->bias, &s->grad_bias}) *table = arena.take<T>(bias_elements<T>(pb.kernel));
    for (T** vector : {&s->query, &s->grad, &s->sum}) *vector = arena.take<T>(at.channels);
    const int64_t window = pb.kernel * window_lanes<T>(pb.kernel);
    for (T** weights : {&s->weights, &s->grad_weights}) *weights = arena.take<T>(window);
    return arena.used();
  }
};

template <class E, class T>
M2F_INLINE void read_query_vector(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t y, int64_t x, int64_t head,
                                  T* to) {
  const int64_t* strides = pb.query_strides;
  const E* from = static_cast<const E*>(pb.query) + batch * strides[0] + y * strides[1] + x * strides[2];
  from += head * strides[3];
  for (int64_t c = 0; c < pb.channels; ++c) to[c] = read(from + c) * static_cast<T>(pb.scale);
}

// First channel of a query in tensors without gaps.
inline int64_t query_place(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t y, int64_t x, int64_t head) {
  return (((batch * pb.query_height + y) * pb.query_width + x) * pb.heads + head) * pb.channels;
}

// Query rows [begin, end) of the class (residue_y, residue_x) of one head.
template <int W, class E>
void neighbourhood_forward_of(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                              int64_t residue_x, int64_t begin, int64_t end, void* scratch) {
  using T = typename Compute<E>::type;
  constexpr int N = lanes<T, W>();
  const ClassAxis y(residue_y, pb.height, pb.query_height, pb), x(residue_x, pb.width, pb.query_width, pb);
  end = end < y.queries ? end : y.queries;
  if (begin >= end || x.queries == 0) return;
  NeighbourhoodScratch<T> s;
  NeighbourhoodScratch<T>::layout(pb, scratch, &s);
  const Packing at = packing_of<T>(pb);
  const int64_t first_row = y.start(begin), last_row = y.start(end - 1) + pb.kernel;
  pack_rows<E, T>(pb, pb.key, pb.key_strides, batch, head, y, x, first_row, last_row, at, nullptr, s.keys);
  pack_rows<E, T>(pb, pb.value, pb.value_strides, batch, head, y, x, first_row, last_row, at, s.values, nullptr);
  copy_bias(pb, head, s.bias);
  const int64_t side = 2 * pb.kernel - 1, stride = window_lanes<T>(pb.kernel);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t top = y.start(row), packed = top - first_row;
    const T* bias_row = s.bias + (pb.kernel - 1 + top - row) * side + pb.kernel - 1;
    for (int64_t column = 0; column < x.queries; ++column) {
      const int64_t left = x.start(column);
      read_query_vector<E, T>(pb, batch, y.position(row), x.position(column), head, s.query);
      multiply_window<N>(s.query, pb.channels, pb.kernel, s.keys + packed * pb.channels * at.lane_columns + left,
                         at.lane_columns, s.weights, stride);
      const T total = exponentiate<N>(s.weights, stride, pb.kernel, bias_row + left - column, side);
      sum_window_channels(s.weights, stride, pb.kernel, s.values + (packed * at.columns + left) * at.channels,
                          at.columns, at.channels, s.sum);
      E* out = static_cast<E*>(pb.output) + query_place(pb, batch, y.position(row), x.position(column), head);
      for (int64_t c = 0; c < pb.channels; ++c) write(out + c, s.sum[c] / total);
    }
  }
}

// Adds weight times vector to each place of a window.
template <int W, class T>
M2F_INLINE void scatter_window(const T* __restrict weights, int64_t stride, int64_t kernel, const T* __restrict vector,
                               T* __restrict maps, int64_t columns, int64_t channels) {
  constexpr int N = lanes<T, W>(), R = W / N;
  for (int64_t c = 0; c < channels; c += W) {
    Vec<T, N> part[R];
    for (int r = 0; r < R; ++r) part[r] = load<N>(vector + c + r * N);
    for (int64_t j = 0; j < kernel; ++j) {
      T* to = maps + j * columns * channels + c;
      for (int64_t i = 0; i < kernel; ++i, to += channels) {
        const T weight = weights[j * stride + i];
        for (int r = 0; r < R; ++r) store<N>(to + r * N, load<N>(to + r * N) + weight * part[r]);
      }
    }
  }
}

template <class T>
M2F_INLINE void scatter_window_channels(const T* weights, int64_t stride, int64_t kernel, const T* vector, T* maps,
                                        int64_t columns, int64_t channels) {
  switch (channels) {
    case 8: return scatter_window<8>(weights, stride, kernel, vector, maps, columns, channels);
    case 16: return scatter_window<16>(weights, stride, kernel, vector, maps, columns, channels);
    default: return scatter_window<32>(weights, stride, kernel, vector, maps, columns, channels);
  }
}

// From exponentials and their sum to weights, and from the weights' gradients to those of the scores, which are added to
// the bias's.
template <int N, class T>
M2F_INLINE void differentiate(T* weights, T* grads, int64_t stride, int64_t kernel, T total, T* grad_bias, int64_t side) {
  const Vec<T, N> zero = {};
  Vec<T, N> dots = {};
  for (int64_t j = 0; j < kernel; ++j) {
    for (int64_t i = 0; i < stride; i += N) {
      const int64_t at = j * stride + i;
      const Vec<T, N> weight = load<N>(weights + at) / total;
      const Vec<T, N> grad = keys_among<N, T>(kernel, i) ? load<N>(grads + at) : zero;
      store<N>(weights + at, weight);
      store<N>(grads + at, grad);
      dots += weight * grad;
    }
  }
  T mean = dots[0];
  for (int i = 1; i < N; ++i) mean += dots[i];
  for (int64_t j = 0; j < kernel; ++j) {
    for (int64_t i = 0; i < stride; i += N) {
      const int64_t at = j * stride + i;
      const Vec<T, N> grad = load<N>(weights + at) * (load<N>(grads + at) - mean);
      const Vec<T, N> known = keys_among<N, T>(kernel, i) ? grad : zero;
      store<N>(grads + at, known);
      T* to = grad_bias + j * side + i;
      store<N>(to, load<N>(to) + known);
    }
  }
}

template <class E, class T>
void write_gradients(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, const ClassAxis& y,
                     const ClassAxis& x, const Packing& at, const T* from, void* grad) {
  for (int64_t row = 0; row < y.keys; ++row) {
    for (int64_t column = 0; column < x.keys; ++column) {
      const int64_t pixel = (batch * pb.height + y.position(row)) * pb.width + x.position(column);
      E* to = static_cast<E*>(grad) + (pixel * pb.heads + head) * pb.channels;
      const T* source = from + (row * at.columns + column) * at.channels;
      for (int64_t c = 0; c < pb.channels; ++c) write(to + c, source[c]);
    }
  }
}

template <int W, class E, class T>
void backward_query(const m2f::NeighbourhoodProblem& pb, const NeighbourhoodScratch<T>& s, const Packing& at,
                    int64_t top, int64_t left, int64_t bias_place, int64_t place) {
  constexpr int N = lanes<T, W>();
  const int64_t side = 2 * pb.kernel - 1, stride = window_lanes<T>(pb.kernel);
  const int64_t planes = top * pb.channels * at.lane_columns + left;
  const int64_t beside = (top * at.columns + left) * at.channels;
  const E* grad_output = static_cast<const E*>(pb.grad_output) + place;
  for (int64_t c = 0; c < pb.channels; ++c) s.grad[c] = read(grad_output + c);
  multiply_window<N>(s.query, pb.channels, pb.kernel, s.keys + planes, at.lane_columns, s.weights, stride);
  const T total = exponentiate<N>(s.weights, stride, pb.kernel, s.bias + bias_place, side);
  multiply_window<N>(s.grad, pb.channels, pb.kernel, s.values + planes, at.lane_columns, s.grad_weights, stride);
  differentiate<N>(s.weights, s.grad_weights, stride, pb.kernel, total, s.grad_bias + bias_place, side);
  sum_window_channels(s.grad_weights, stride, pb.kernel, s.keys_beside + beside, at.columns, at.channels, s.sum);
  E* grad_query = static_cast<E*>(pb.grad_query) + place;
  for (int64_t c = 0; c < pb.channels; ++c) write(grad_query + c, s.sum[c] * static_cast<T>(pb.scale));
  scatter_window_channels(s.grad_weights, stride, pb.kernel, s.query, s.grad_keys + beside, at.columns, at.channels);
  scatter_window_channels(s.weights, stride, pb.kernel, s.grad, s.grad_values + beside, at.columns, at.channels);
}

// All gradients of the rows of one residue class of one head: no two such slices write the same element.
template <int W, class E>
void neighbourhood_backward_of(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                               void* scratch) {
  using T = typename Compute<E>::type;
  NeighbourhoodScratch<T> s;
  NeighbourhoodScratch<T>::layout(pb, scratch, &s);
  const Packing at = packing_of<T>(pb);
  const ClassAxis y(residue_y, pb.height, pb.query_height, pb);
  const int64_t side = 2 * pb.kernel - 1;
  copy_bias(pb, head, s.bias);
  memset(s.grad_bias, 0, bias_elements<T>(pb.kernel) * sizeof(T));
  for (T* vector : {s.query, s.grad}) memset(vector, 0, at.channels * sizeof(T));
  for (int64_t residue_x = 0; residue_x < pb.dilation; ++residue_x) {
    const ClassAxis x(residue_x, pb.width, pb.query_width, pb);
    pack_rows<E, T>(pb, pb.key, pb.key_strides, batch, head, y, x, 0, y.keys, at, s.keys_beside, s.keys);
    pack_rows<E, T>(pb, pb.value, pb.value_strides, batch, head, y, x, 0, y.keys, at, nullptr, s.values);
    for (T* grad : {s.grad_keys, s.grad_values}) memset(grad, 0, y.keys * at.columns * at.channels * sizeof(T));
    for (int64_t row = 0; row < y.queries; ++row) {
      const int64_t top = y.start(row), bias_row = (pb.kernel - 1 + top - row) * side + pb.kernel - 1;
      for (int64_t column = 0; column < x.queries; ++column) {
        const int64_t left = x.start(column), query_y = y.position(row), query_x = x.position(column);
        read_query_vector<E, T>(pb, batch, query_y, query_x, head, s.query);
        backward_query<W, E, T>(pb, s, at, top, left, bias_row + left - column,
                                query_place(pb, batch, query_y, query_x, head));
      }
    }
    write_gradients<E, T>(pb, batch, head, y, x, at, s.grad_keys, pb.grad_key);
    write_gradients<E, T>(pb, batch, head, y, x, at, s.grad_values, pb.grad_value);
  }
  T* grad_bias = static_cast<T*>(pb.grad_bias) + ((batch * pb.dilation + residue_y) * pb.heads + head) * side * side;
  memcpy(grad_bias, s.grad_bias, side * side * sizeof(T));
}

template <class E>
void neighbourhood_forward_any(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                               int64_t residue_x, int64_t begin, int64_t end, void* scratch) {
  if (pb.kernel <= 8) {
    neighbourhood_forward_of<8, E>(pb, batch, head, residue_y, residue_x, begin, end, scratch);
  } else {
    neighbourhood_forward_of<16, E>(pb, batch, head, residue_y, residue_x, begin, end, scratch);
  }
}

template <class E>
void neighbourhood_backward_any(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                                void* scratch) {
  if (pb.kernel <= 8) {
    neighbourhood_backward_of<8, E>(pb, batch, head, residue_y, scratch);
  } else {
    neighbourhood_backward_of<16, E>(pb, batch, head, residue_y, scratch);
  }
}

}  // namespace
