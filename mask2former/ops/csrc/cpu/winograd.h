// Transforms of Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv:1509.09308): a tile of 6 x 6 pixels and a
// filter of 3 x 3 give 4 x 4 outputs through 36 products instead of 144. Vectorised over channels.
//   output = A^T [(G filter G^T) * (B^T pixels B)] A, therefore
//   gradient of the filter = G^T [sum over tiles of (A gradient of the output A^T) * (B^T pixels B)] G.
//
// The points are 0, +-3/4, +-3/2 and infinity. With the usual 0, +-1, +-2 float32 loses four times as much: measured
// against float64, 6e-6 of the largest output instead of 1.5e-6.
#pragma once

#include "problem.h"
#include "simd.h"

namespace {

constexpr int kTile = 4, kPatch = 6, kProducts = kPatch * kPatch;
constexpr float kP = 0.75f, kQ = 1.5f;  // all constants below are exact in float32

// The rows of B^T: pixels of a line -> what is multiplied.
struct InputLines {
  static constexpr int kSize = kPatch, kBorder = 1;  // pixels of a line, and how many lie before the tile

  template <class V>
  static M2F_INLINE void transform(const V* d, V* out) {
    constexpr float pp = kP * kP, qq = kQ * kQ;
    out[0] = d[4] - (pp + qq) * d[2] + (pp * qq) * d[0];
    const V even_p = d[4] - qq * d[2], odd_p = kP * d[3] - (kP * qq) * d[1];
    out[1] = even_p + odd_p;
    out[2] = even_p - odd_p;
    const V even_q = d[4] - pp * d[2], odd_q = kQ * d[3] - (kQ * pp) * d[1];
    out[3] = even_q + odd_q;
    out[4] = even_q - odd_q;
    out[5] = d[5] - (pp + qq) * d[3] + (pp * qq) * d[1];
  }
};

// The rows of A: gradients of a line of outputs -> those of the products.
struct GradientLines {
  static constexpr int kSize = kTile, kBorder = 0;

  template <class V>
  static M2F_INLINE void transform(const V* d, V* out) {
    const V even_p = d[0] + (kP * kP) * d[2], odd_p = kP * d[1] + (kP * kP * kP) * d[3];
    const V even_q = d[0] + (kQ * kQ) * d[2], odd_q = kQ * d[1] + (kQ * kQ * kQ) * d[3];
    out[0] = d[0];
    out[1] = even_p + odd_p;
    out[2] = even_p - odd_p;
    out[3] = even_q + odd_q;
    out[4] = even_q - odd_q;
    out[5] = d[3];
  }
};

// The rows of A^T: products of a line -> outputs.
template <class V>
M2F_INLINE void transform_output(const V* m, V* out) {
  const V even_p = m[1] + m[2], odd_p = m[1] - m[2], even_q = m[3] + m[4], odd_q = m[3] - m[4];
  out[0] = m[0] + even_p + even_q;
  out[1] = kP * odd_p + kQ * odd_q;
  out[2] = (kP * kP) * even_p + (kQ * kQ) * even_q;
  out[3] = (kP * kP * kP) * odd_p + (kQ * kQ * kQ) * odd_q + m[5];
}

struct TilePlace {
  int64_t batch, top, left;  // of the tile's first output pixel
};

TilePlace place_of(const m2f::WinogradProblem& pb, int64_t tile) {
  const int64_t rows = (pb.height + kTile - 1) / kTile, columns = (pb.width + kTile - 1) / kTile;
  return {tile / columns / rows, tile / columns % rows * kTile, tile % columns * kTile};
}

// tiles [begin, end) counted within the strip; scratch holds one pixel's channels.
template <class Lines>
M2F_INLINE void transform_tiles(const m2f::WinogradProblem& pb, int64_t begin, int64_t end, void* scratch) {
  constexpr int N = lanes<float, 16>(), kSize = Lines::kSize;
  float* outside = static_cast<float*>(scratch);  // the zeros around the map
  memset(outside, 0, static_cast<size_t>(pb.channels) * sizeof(float));
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = place_of(pb, pb.first_tile + tile);
    const float* image = pb.map + place.batch * pb.height * pb.width * pb.channels;
    const float* pixel[kSize * kSize];
    for (int i = 0; i < kSize * kSize; ++i) {
      const int64_t y = place.top + i / kSize - Lines::kBorder, x = place.left + i % kSize - Lines::kBorder;
      const bool is_inside = y >= 0 && y < pb.height && x >= 0 && x < pb.width;
      pixel[i] = is_inside ? image + (y * pb.width + x) * pb.channels : outside;
    }
    float* to = pb.transformed + tile * pb.channels;
    for (int64_t c = 0; c < pb.channels; c += N) {
      Vec<float, N> half[kSize][kPatch];  // [column of pixels][row of the matrix]
      for (int x = 0; x < kSize; ++x) {
        Vec<float, N> line[kSize];
        for (int y = 0; y < kSize; ++y) line[y] = load<N>(pixel[y * kSize + x] + c);
        Lines::transform(line, half[x]);
      }
      for (int y = 0; y < kPatch; ++y) {
        Vec<float, N> line[kSize], out[kPatch];
        for (int x = 0; x < kSize; ++x) line[x] = half[x][y];
        Lines::transform(line, out);
        for (int x = 0; x < kPatch; ++x) store<N>(to + (y * kPatch + x) * pb.stride + c, out[x]);
      }
    }
  }
}

void winograd_input(const m2f::WinogradProblem& pb, int64_t begin, int64_t end, void* scratch) {
  transform_tiles<InputLines>(pb, begin, end, scratch);
}

void winograd_gradient(const m2f::WinogradProblem& pb, int64_t begin, int64_t end, void* scratch) {
  transform_tiles<GradientLines>(pb, begin, end, scratch);
}

// Likewise; what lies beyond the map's edge goes to the scratch.
void winograd_output(const m2f::WinogradProblem& pb, int64_t begin, int64_t end, void* scratch) {
  constexpr int N = lanes<float, 16>();
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = place_of(pb, pb.first_tile + tile);
    float* image = pb.output + place.batch * pb.height * pb.width * pb.channels;
    float* pixel[kTile * kTile];
    for (int i = 0; i < kTile * kTile; ++i) {
      const int64_t y = place.top + i / kTile, x = place.left + i % kTile;
      const bool is_inside = y < pb.height && x < pb.width;
      pixel[i] = is_inside ? image + (y * pb.width + x) * pb.channels : static_cast<float*>(scratch);
    }
    const float* from = pb.transformed + tile * pb.channels;
    for (int64_t c = 0; c < pb.channels; c += N) {
      Vec<float, N> half[kPatch][kTile];  // [column of the products][row of A^T]
      for (int x = 0; x < kPatch; ++x) {
        Vec<float, N> line[kPatch];
        for (int y = 0; y < kPatch; ++y) line[y] = load<N>(from + (y * kPatch + x) * pb.stride + c);
        transform_output(line, half[x]);
      }
      const Vec<float, N> scale = load<N>(pb.scale + c), shift = load<N>(pb.shift + c), zero = {};
      for (int y = 0; y < kTile; ++y) {
        Vec<float, N> line[kPatch], out[kTile];
        for (int x = 0; x < kPatch; ++x) line[x] = half[x][y];
        transform_output(line, out);
        for (int x = 0; x < kTile; ++x) {
          Vec<float, N> value = out[x] * scale + shift;
          if (pb.relu) value = value < zero ? zero : value;  // NaN stays NaN
          store<N>(pixel[y * kTile + x] + c, value);
        }
      }
    }
  }
}

}  // namespace
