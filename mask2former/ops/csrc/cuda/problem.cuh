// What the kernels are told, and how they divide it among threads.
//
// A group of neighbouring lanes serves one (batch item, head, query): half of it reads the left pixels of a sample, half
// the right ones, and each lane holds VEC channels, 16 bytes where sizes and alignment allow it. With the value head by
// head in memory a group's load is one contiguous piece. The groups of a block are neighbouring queries of one head, whose
// samples lie close together, so that they find each other's pixels in the first cache.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace {

constexpr int kMaxLevels = 32;
constexpr int kThreads = 256;
constexpr int kMostRowLanes = 16;  // two rows are a warp; more channels than these lanes hold take several passes
constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr unsigned kAllLanes = 0xffffffffu;

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct Levels {
  int height[kMaxLevels], width[kMaxLevels];
  int64_t start[kMaxLevels];  // first token
};

struct Sizes {
  int64_t queries;
  int64_t batch_stride, head_stride, token_stride;  // of value and its gradient, in elements
  int heads, channels, levels, points;
  int row_lanes;   // lanes that share a pixel's channels: a power of two; a group is twice as many
  unsigned tiles;  // blocks of a (batch item, head)
};

// Where a thread belongs. Threads past the last query stay, as all lanes of a warp take part in its sums and barriers;
// they repeat the last query without reading the map or writing.
struct Group {
  bool is_real;
  int lanes, lane, column, row_lane;
  int64_t batch, head, query;
  int64_t row;  // of (batch item, query, head): the order of all tensors but value and its gradient

  __device__ __forceinline__ explicit Group(const Sizes& s) {
    lanes = 2 * s.row_lanes;
    lane = static_cast<int>(threadIdx.x) & (lanes - 1);
    row_lane = lane & (s.row_lanes - 1);
    column = lane >= s.row_lanes;
    const unsigned item = blockIdx.x / s.tiles, heads = static_cast<unsigned>(s.heads);
    batch = item / heads;
    head = item % heads;
    query = static_cast<int64_t>(blockIdx.x % s.tiles) * (kThreads / lanes) + threadIdx.x / lanes;
    is_real = query < s.queries;
    if (!is_real) query = s.queries - 1;
    row = (batch * s.queries + query) * s.heads + head;
  }
};

__device__ __forceinline__ float sum_over_group(float v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__device__ __forceinline__ float max_over_group(float v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

}  // namespace
