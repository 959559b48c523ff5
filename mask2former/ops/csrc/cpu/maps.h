// Passes over a channels_last map (N, H, W, C) in place, float or bfloat16, computed in float: moments of groups of
// channels, an affine map of each channel, and adding a smaller map brought to size; and adding tokens to others with the
// norm of the sums. C is a multiple of 16.
#pragma once

#include "problem.h"
#include "simd.h"

namespace {

// Mean and sum of squared deviations of each group of channels in pixels [begin, end) of one image, as float64 pairs.
// Deviations are taken from the mean of a block, blocks are merged in float64: nothing large cancels.
template <class T>
void moments_of(const m2f::MapProblem& pb, int64_t batch, int64_t begin, int64_t end, double* out, float* mean) {
  constexpr int N = lanes<float, 16>();
  const int64_t C = pb.channels, width = C / pb.groups, count = end - begin;
  const T* block = static_cast<const T*>(pb.map) + (batch * pb.pixels + begin) * C;
  float* squares = mean + C;
  for (int64_t c = 0; c < C; c += N) {
    Vec<float, N> sum = {}, square = {};
    for (int64_t i = 0; i < count; ++i) sum += load<N>(block + i * C + c);
    sum /= static_cast<float>(count);
    for (int64_t i = 0; i < count; ++i) {
      const Vec<float, N> centred = load<N>(block + i * C + c) - sum;
      square += centred * centred;
    }
    store<N>(mean + c, sum);
    store<N>(squares + c, square);
  }
  for (int64_t g = 0; g < pb.groups; ++g) {
    double centre = 0, spread = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) centre += mean[c];
    centre /= static_cast<double>(width);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      spread += squares[c] + static_cast<double>(count) * (mean[c] - centre) * (mean[c] - centre);
    }
    out[2 * g] = centre;
    out[2 * g + 1] = spread;
  }
}

// map * scale + shift, with a scale and a shift (N, C) for each channel of each image; then ReLU if wanted.
template <class T>
void affine_of(const m2f::MapProblem& pb, int64_t batch, int64_t begin, int64_t end) {
  constexpr int N = lanes<float, 16>();
  const int64_t C = pb.channels;
  T* pixels = static_cast<T*>(pb.map) + batch * pb.pixels * C;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t c = 0; c < C; c += N) {
      Vec<float, N> value = load<N>(pixels + i * C + c) * load<N>(pb.scale + batch * C + c) +
                            load<N>(pb.shift + batch * C + c);
      const Vec<float, N> zero = {};
      if (pb.relu) value = value < zero ? zero : value;  // NaN stays NaN
      store<N>(pixels + i * C + c, value);
    }
  }
}

struct Neighbours {
  int64_t first, second;
  float weight;  // of the second
};

// Where a place of the larger axis lies between two of the smaller one, pixels being areas (align_corners=False).
Neighbours neighbours_of(int64_t place, int64_t size, int64_t other) {
  const float scale = static_cast<float>(other) / static_cast<float>(size);
  const float exact = scale * (static_cast<float>(place) + 0.5f) - 0.5f;
  const float real = exact < 0 ? 0.0f : exact;
  const int64_t first = static_cast<int64_t>(real) < other - 1 ? static_cast<int64_t>(real) : other - 1;
  return {first, first < other - 1 ? first + 1 : first, real - static_cast<float>(first)};
}

// Adds to one row of the map the row of `above` (N, h, w, C) that bilinear resizing puts there; scratch for w pixels.
template <class T>
void add_resized_row(const m2f::MapProblem& pb, int64_t batch, int64_t y, float* blended) {
  constexpr int N = lanes<float, 16>();
  const int64_t C = pb.channels, length = pb.above_width * C;
  const T* above = static_cast<const T*>(pb.above) + batch * pb.above_height * length;
  const Neighbours rows = neighbours_of(y, pb.pixels / pb.width, pb.above_height);
  for (int64_t i = 0; i < length; i += N) {
    const Vec<float, N> upper = load<N>(above + rows.first * length + i);
    store<N>(blended + i, upper + rows.weight * (load<N>(above + rows.second * length + i) - upper));
  }
  T* row = static_cast<T*>(pb.map) + (batch * pb.pixels + y * pb.width) * C;
  for (int64_t x = 0; x < pb.width; ++x) {
    const Neighbours columns = neighbours_of(x, pb.width, pb.above_width);
    for (int64_t c = 0; c < C; c += N) {
      const Vec<float, N> left = load<N>(blended + columns.first * C + c);
      const Vec<float, N> added = left + columns.weight * (load<N>(blended + columns.second * C + c) - left);
      store<N>(row + x * C + c, load<N>(row + x * C + c) + added);
    }
  }
}

// x = layer norm of x + y, for the rows [begin, end) counted over all batch items.
template <class T>
void add_norm_rows_of(const m2f::AddNormProblem& pb, int64_t begin, int64_t end) {
  constexpr int N = lanes<float, 16>();
  const int64_t C = pb.channels;
  for (int64_t i = begin; i < end; ++i) {
    float* x = pb.x + i / pb.rows * pb.stride + i % pb.rows * C;
    const T* y = static_cast<const T*>(pb.y) + i * C;
    Vec<float, N> sums = {}, squares = {};
    for (int64_t c = 0; c < C; c += N) {
      const Vec<float, N> value = load<N>(x + c) + load<N>(y + c);
      store<N>(x + c, value);
      sums += value;
    }
    float mean = 0, variance = 0;
    for (int lane = 0; lane < N; ++lane) mean += sums[lane];
    mean /= static_cast<float>(C);
    for (int64_t c = 0; c < C; c += N) {
      const Vec<float, N> centred = load<N>(x + c) - mean;
      squares += centred * centred;
    }
    for (int lane = 0; lane < N; ++lane) variance += squares[lane];
    const float factor = 1.0f / __builtin_sqrtf(variance / static_cast<float>(C) + pb.eps);
    for (int64_t c = 0; c < C; c += N) {
      const Vec<float, N> normed = (load<N>(x + c) - mean) * factor;
      store<N>(x + c, normed * load<N>(pb.weight + c) + load<N>(pb.bias + c));
    }
  }
}

}  // namespace
