// Where a query's points lie and how much they weigh: read as they are, or computed from what an encoder layer's linear
// maps put out, so that neither locations nor weights are ever stored.
#pragma once

#include "problem.cuh"
#include "vectors.cuh"

namespace {

// What the lanes of a group need to know of a point; one of them computes it for all.
struct alignas(16) Sample {
  float right, lower;  // distances from the pixel left of and above it
  float attention;
  float outside;   // what a point outside adds: 0, but not a number if its coordinates are not finite
  int64_t offset;  // of that pixel in the head's map, in elements; before it where the pixel is not on the map
  int level;
  int corners;  // bit 2 * row + column: that neighbour lies on the map

  __device__ __forceinline__ bool has(int row, int column) const { return corners >> (2 * row + column) & 1; }
};

// A point in pixels of its level: pixel centres are integers.
__device__ __forceinline__ Sample locate(float2 at, float attention, int level, const Levels& levels, const Sizes& s) {
  const int width = levels.width[level], height = levels.height[level];
  const bool inside = at.x > -1.f && at.x < width && at.y > -1.f && at.y < height;
  const float fx = floorf(inside ? at.x : 0.f), fy = floorf(inside ? at.y : 0.f);
  const int x = static_cast<int>(fx), y = static_cast<int>(fy);
  const int columns = (x >= 0 ? 1 : 0) | (x + 1 < width ? 2 : 0);
  const int corners = (y >= 0 ? columns : 0) | (y + 1 < height ? columns << 2 : 0);
  const int64_t token = levels.start[level] + static_cast<int64_t>(y) * width + x;
  return {at.x - fx, at.y - fy, attention, (at.x + at.y) * 0.f, token * s.token_stride, level, inside ? corners : 0};
}

// Locations as (x, y), 0 to 1 from edge to edge of the level, and weights.
struct Given {
  const float2* locations;  // (B, Q, M, L, P, 2), as its gradient
  const float* weights;     // (B, Q, M, L, P), as its gradient
  float2* grad_locations;
  float* grad_weights;
  int64_t first;  // point of the group

  __device__ __forceinline__ void enter(const Group& group, const Sizes& s) { first = group.row * s.levels * s.points; }
  __device__ __forceinline__ Sample sample(int i, const Levels& levels, const Sizes& s) const {
    const int level = i / s.points;
    const float2 at = __ldg(locations + first + i);
    const float2 pixel = make_float2(at.x * levels.width[level] - 0.5f, at.y * levels.height[level] - 0.5f);
    return locate(pixel, __ldg(weights + first + i), level, levels, s);
  }
  // Gradients of pixel position and weight.
  __device__ __forceinline__ void store(int i, float3 grad, const Sample& at, const Levels& levels) {
    grad_locations[first + i] = make_float2(grad.x * levels.width[at.level], grad.y * levels.height[at.level]);
    grad_weights[first + i] = grad.z;
  }
  __device__ __forceinline__ void finish(const Group&, const Sizes&) {}
};

// Offsets in pixels from a centre, 0 to 1 from edge to edge of every level, and logits of a softmax over all points.
template <typename T>
struct Around {
  const float2* centres;      // (Q, 2)
  const Pack<T, 2>* offsets;  // (B, Q, M, L, P, 2), as its gradient
  const T* logits;            // (B, Q, M, L, P), as its gradient
  Pack<T, 2>* grad_offsets;
  float* grad_logits;  // float32, as it also keeps the gradients of the weights meanwhile
  int64_t first;       // point of the group
  float2 centre;
  float most, inverse;  // largest logit, and 1 / sum of exponentials
  float mean;           // of the weights' gradients under the weights

  __device__ __forceinline__ float logit(int i) const { return to_float(logits[first + i]); }
  __device__ __forceinline__ float attention(int i) const { return expf(logit(i) - most) * inverse; }

  __device__ __forceinline__ void enter(const Group& group, const Sizes& s) {
    const int total = s.levels * s.points;
    first = group.row * total;
    centre = __ldg(centres + group.query);
    most = -INFINITY;
    for (int i = group.lane; i < total; i += group.lanes) most = fmaxf(most, logit(i));
    most = max_over_group(most, group.lanes);
    float sum = 0.f;
    for (int i = group.lane; i < total; i += group.lanes) sum += expf(logit(i) - most);
    inverse = 1.f / sum_over_group(sum, group.lanes);
    mean = 0.f;
  }
  __device__ __forceinline__ Sample sample(int i, const Levels& levels, const Sizes& s) const {
    const int level = i / s.points;
    float offset[2];
    load<T, 2>(reinterpret_cast<const T*>(offsets + first + i), offset);
    const float2 pixel = make_float2(centre.x * levels.width[level] - 0.5f + offset[0],
                                     centre.y * levels.height[level] - 0.5f + offset[1]);
    return locate(pixel, attention(i), level, levels, s);
  }
  __device__ __forceinline__ void store(int i, float3 grad, const Sample& at, const Levels&) {
    const float position[2] = {grad.x, grad.y};
    ::store<T, 2>(reinterpret_cast<T*>(grad_offsets + first + i), position);
    grad_logits[first + i] = grad.z;
    mean += at.attention * grad.z;
  }
  // Through the softmax. Each lane rereads what it has written itself.
  __device__ __forceinline__ void finish(const Group& group, const Sizes& s) {
    mean = sum_over_group(mean, group.lanes);
    if (!group.is_real) return;
    for (int i = group.lane; i < s.levels * s.points; i += group.lanes) {
      grad_logits[first + i] = attention(i) * (grad_logits[first + i] - mean);
    }
  }
};

}  // namespace
