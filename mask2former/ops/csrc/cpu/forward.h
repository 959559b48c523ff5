// Forward kernel: for each query a plan (offsets and weights of the four corners of every point of every head), computed
// in one vectorised pass, then for each head a weighted sum of rows, vectorised over the head's channels.
#pragma once

#include "locate.h"
#include "problem.h"
#include "simd.h"

namespace {

// T: compute type. Index: type of element offsets into one batch item's value.
template <class T, class Index>
struct ForwardPlan {
  using Int = typename IntOf<T>::type;
  // Of each point of a query, all heads (M * L * P, padded): constants of its level and head,
  T *width, *height, *pixel_width, *pixel_height;
  Int *last_x, *last_y;
  Index *row_step, *start;
  // what the query says,
  T *x, *y, *attention;
  // and of corner k = 2 * (lower row) + (right column) the offset of its channels and its weight.
  Index* offset[4];
  T* weight[4];

  static size_t layout(Arena* arena, int64_t num_points, ForwardPlan* plan) {
    const int64_t n = padded_points(num_points);
    ForwardPlan p;
    T** const floats[] = {&p.width, &p.height, &p.pixel_width, &p.pixel_height, &p.x, &p.y, &p.attention};
    for (T** array : floats) *array = arena->take<T>(n);
    p.last_x = arena->take<Int>(n);
    p.last_y = arena->take<Int>(n);
    p.row_step = arena->take<Index>(n);
    p.start = arena->take<Index>(n);
    for (int k = 0; k < 4; ++k) {
      p.offset[k] = arena->take<Index>(n);
      p.weight[k] = arena->take<T>(n);
    }
    if (plan) *plan = p;
    return arena->used();
  }
};

template <class T, class Index>
void fill_constants(const m2f::Problem& pb, ForwardPlan<T, Index>* plan) {
  using Int = typename IntOf<T>::type;
  const Index token = static_cast<Index>(pb.heads * pb.channels);  // elements from one token to the next
  int64_t i = 0;
  for (int64_t m = 0; m < pb.heads; ++m) {
    Index start = static_cast<Index>(m * pb.channels);
    for (int64_t l = 0; l < pb.levels; ++l) {
      const int64_t h = pb.shapes[2 * l], w = pb.shapes[2 * l + 1];
      for (int64_t p = 0; p < pb.points; ++p, ++i) {
        plan->width[i] = static_cast<T>(w);
        plan->height[i] = static_cast<T>(h);
        plan->pixel_width[i] = T(1) / static_cast<T>(w);
        plan->pixel_height[i] = T(1) / static_cast<T>(h);
        plan->last_x[i] = static_cast<Int>(w - 1);
        plan->last_y[i] = static_cast<Int>(h - 1);
        plan->row_step[i] = static_cast<Index>(w) * token;
        plan->start[i] = start;
      }
      start += static_cast<Index>(h * w) * token;
    }
  }
}

// What a query says, as locations and weights.
template <class T, class Index>
M2F_INLINE void read_query(const ForwardPlan<T, Index>& plan, int64_t n, const T* locations, const T* weights) {
  split_xy(locations, n, plan.x, plan.y);
  memcpy(plan.attention, weights, n * sizeof(T));
}

// The same from offsets in pixels around a centre (x, y), and from logits of which each head's go through a softmax.
template <class T, class E, class Index>
M2F_INLINE void read_query(const ForwardPlan<T, Index>& plan, int64_t n, int64_t per_head, const T* centre,
                           const E* __restrict offsets, const E* __restrict logits) {
  constexpr int N = kTogether<T>;
  const T x = centre[0], y = centre[1];
  for (int64_t i = 0; i < n; ++i) {
    plan.x[i] = x + read(offsets + 2 * i) * plan.pixel_width[i];
    plan.y[i] = y + read(offsets + 2 * i + 1) * plan.pixel_height[i];
  }
  for (int64_t first = 0; first < n; first += per_head) {
    T largest = read(logits + first);
    for (int64_t i = first + 1; i < first + per_head; ++i) {
      const T logit = read(logits + i);
      largest = logit > largest ? logit : largest;
    }
    for (int64_t i = first; i < first + per_head; ++i) plan.attention[i] = read(logits + i) - largest;
  }
  for (int64_t i = 0; i < n; i += N) store<N>(plan.attention + i, exp_of<N>(load<N>(plan.attention + i)));
  for (int64_t first = 0; first < n; first += per_head) {
    T sum = 0;
    for (int64_t i = first; i < first + per_head; ++i) sum += plan.attention[i];
    const T factor = T(1) / sum;
    for (int64_t i = first; i < first + per_head; ++i) plan.attention[i] *= factor;
  }
}

// One query of n points, already read. A corner outside the map gets weight 0 and the offset of the nearest pixel inside, so that the
// sum below needs no branches. A point outside has weight 0 everywhere.
template <class T, class Index>
void plan_query(const ForwardPlan<T, Index>& plan, int64_t n, Index token) {
  constexpr int N = kTogether<T>;
  using Offsets = Vec<Index, N>;
  const Floats<T> zero = {};
  const Ints<T> origin = {};
  for (int64_t i = 0; i < n; i += N) {
    const auto at = locate<T>(load<N>(plan.x + i), load<N>(plan.y + i), load<N>(plan.width + i),
                              load<N>(plan.height + i));
    const Floats<T> a = at.inside ? load<N>(plan.attention + i) : at.outside;
    const Ints<T> last_x = load<N>(plan.last_x + i), last_y = load<N>(plan.last_y + i);
    const Floats<T> wx0 = at.x >= origin ? T(1) - at.right : zero, wx1 = at.x < last_x ? at.right : zero;
    const Floats<T> wy0 = at.y >= origin ? (T(1) - at.lower) * a : zero, wy1 = at.y < last_y ? at.lower * a : zero;
    const Ints<T> x0 = at.x > origin ? at.x : origin, x1 = at.x < last_x ? at.x + 1 : last_x;
    const Ints<T> y0 = at.y > origin ? at.y : origin, y1 = at.y < last_y ? at.y + 1 : last_y;
    const Offsets row_step = load<N>(plan.row_step + i), start = load<N>(plan.start + i);
    const Offsets left = __builtin_convertvector(x0, Offsets) * token;
    const Offsets right = __builtin_convertvector(x1, Offsets) * token;
    const Offsets upper = start + __builtin_convertvector(y0, Offsets) * row_step;
    const Offsets lower = start + __builtin_convertvector(y1, Offsets) * row_step;
    const Offsets offset[4] = {upper + left, upper + right, lower + left, lower + right};
    const Floats<T> weight[4] = {wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1};
    for (int k = 0; k < 4; ++k) {
      store<N>(plan.offset[k] + i, offset[k]);
      store<N>(plan.weight[k] + i, weight[k]);
    }
  }
}

// W channels of one (query, head): sum over its points [begin, end).
template <int W, class T, class E, class Index>
M2F_INLINE void sum_points(const ForwardPlan<T, Index>& plan, int64_t begin, int64_t end, const E* __restrict value,
                           E* __restrict out) {
  constexpr int N = lanes<T, W>(), R = W / N;
  Vec<T, N> sum[R] = {};
  for (int64_t i = begin; i < end; ++i) {
    for (int k = 0; k < 4; ++k) {
      const E* row = value + plan.offset[k][i];
      const T w = plan.weight[k][i];
      for (int r = 0; r < R; ++r) sum[r] += w * load<N>(row + r * N);
    }
  }
  T flat[W];
  memcpy(flat, sum, sizeof(flat));
  for (int c = 0; c < W; ++c) write(out + c, flat[c]);
}

template <class T, class E, class Index>
M2F_INLINE void sum_one_channel(const ForwardPlan<T, Index>& plan, int64_t begin, int64_t end,
                                const E* __restrict value, E* __restrict out) {
  T sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    for (int k = 0; k < 4; ++k) sum += plan.weight[k][i] * read(value + plan.offset[k][i]);
  }
  write(out, sum);
}

template <class E, class Index>
void forward_tile_of(const m2f::Problem& pb, int64_t batch, int64_t begin, int64_t end, void* scratch) {
  using T = typename Compute<E>::type;
  const int64_t per_head = pb.levels * pb.points, n = pb.heads * per_head, token = pb.heads * pb.channels;
  Arena arena(scratch);
  ForwardPlan<T, Index> plan;
  memset(scratch, 0, ForwardPlan<T, Index>::layout(&arena, n, &plan));  // the padding too is computed with
  fill_constants(pb, &plan);
  const E* value = static_cast<const E*>(pb.value) + batch * pb.tokens * token;
  for (int64_t q = begin; q < end; ++q) {
    const int64_t row = batch * pb.queries + q;
    if (pb.centres) {
      read_query<T, E, Index>(plan, n, per_head, static_cast<const T*>(pb.centres) + 2 * q,
                              static_cast<const E*>(pb.locations) + row * n * 2,
                              static_cast<const E*>(pb.weights) + row * n);
    } else {
      read_query<T, Index>(plan, n, static_cast<const T*>(pb.locations) + row * n * 2,
                           static_cast<const T*>(pb.weights) + row * n);
    }
    plan_query<T, Index>(plan, n, static_cast<Index>(token));
    E* out = static_cast<E*>(pb.output) + row * token;
    for (int64_t m = 0; m < pb.heads; ++m, out += pb.channels) {
      const int64_t first = m * per_head, last = first + per_head;
      int64_t c = 0;
      for (; c + 32 <= pb.channels; c += 32) sum_points<32>(plan, first, last, value + c, out + c);
      for (; c + 16 <= pb.channels; c += 16) sum_points<16>(plan, first, last, value + c, out + c);
      for (; c + 8 <= pb.channels; c += 8) sum_points<8>(plan, first, last, value + c, out + c);
      for (; c < pb.channels; ++c) sum_one_channel(plan, first, last, value + c, out + c);
    }
  }
}

template <class E>
void forward_tile_any(const m2f::Problem& pb, int64_t batch, int64_t begin, int64_t end, void* scratch) {
  const int64_t elements = pb.tokens * pb.heads * pb.channels;  // 32-bit offsets are cheaper; few maps need more
  if (elements <= INT32_MAX) {
    forward_tile_of<E, int32_t>(pb, batch, begin, end, scratch);
  } else {
    forward_tile_of<E, int64_t>(pb, batch, begin, end, scratch);
  }
}

}  // namespace
