// Where sampling points lie between pixels, several points at a time.
#pragma once

#include "simd.h"

namespace {

// Points computed together, and the signed integer of T's width: comparisons of Vec<T, N> yield vectors of it.
template <class T>
constexpr int kTogether = M2F_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};
template <class T>
using Floats = Vec<T, kTogether<T>>;
template <class T>
using Ints = Vec<typename IntOf<T>::type, kTogether<T>>;

template <class T>
M2F_INLINE Floats<T> splat(T v) {
  return Floats<T>{} + v;
}

template <class T>
struct Located {
  Ints<T> inside;          // all bits set where the point touches the map: strictly between -1 and its size
  Ints<T> x, y;            // the pixel left of and above the point, from -1
  Floats<T> right, lower;  // distance from it
  Floats<T> outside;       // factor of a point outside: 0, but not a number if its coordinates are not finite
};

// Normalised coordinates (0 to 1 from edge to edge); pixel centres lie at half-integers. Outside, and for coordinates
// that are not finite, pixel and distance are 0.
template <class T>
M2F_INLINE Located<T> locate(Floats<T> x, Floats<T> y, Floats<T> width, Floats<T> height) {
  const Floats<T> zero = {};
  Located<T> out;
  x = x * width - T(0.5);
  y = y * height - T(0.5);
  out.outside = (x + y) * T(0);
  out.inside = (x > T(-1)) & (x < width) & (y > T(-1)) & (y < height);
  x = out.inside ? x : zero;
  y = out.inside ? y : zero;
  out.x = __builtin_convertvector(x, Ints<T>);  // towards zero; a true comparison is -1
  out.y = __builtin_convertvector(y, Ints<T>);
  out.x += x < __builtin_convertvector(out.x, Floats<T>);
  out.y += y < __builtin_convertvector(out.y, Floats<T>);
  out.right = x - __builtin_convertvector(out.x, Floats<T>);
  out.lower = y - __builtin_convertvector(out.y, Floats<T>);
  return out;
}

// Length of an array of n points that is read and written kTogether at a time.
constexpr int64_t kMostTogether = 16;
inline int64_t padded_points(int64_t n) { return (n + kMostTogether - 1) / kMostTogether * kMostTogether; }

template <class T>
M2F_INLINE void split_xy(const T* __restrict xy, int64_t n, T* __restrict x, T* __restrict y) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = xy[2 * i];
    y[i] = xy[2 * i + 1];
  }
}

}  // namespace
