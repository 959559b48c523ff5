// Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3): forward and backward.
#pragma once

#include "samples.cuh"

namespace {

template <typename T, int VEC>
__device__ __forceinline__ void add_sample(const Sample& at, const Group& group, const T* __restrict__ map, int64_t row,
                                           int64_t column, float (&sum)[VEC]) {
  const float weight = at.attention * (group.column ? at.right : 1.f - at.right);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (!at.has(k, group.column)) continue;
    const float w = weight * (k ? at.lower : 1.f - at.lower);
    float v[VEC];
    load<T, VEC>(map + at.offset + column + k * row, v);
#pragma unroll
    for (int n = 0; n < VEC; ++n) sum[n] += w * v[n];
  }
  if (at.corners == 0) {
#pragma unroll
    for (int n = 0; n < VEC; ++n) sum[n] += at.outside;
  }
}

template <typename T, int VEC, typename Source>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ value, const Levels levels, Source source, T* __restrict__ output,
                   const Sizes s) {
  __shared__ Sample shared[kThreads];
  const Group group(s);
  Sample* samples = shared + (threadIdx.x - group.lane);
  source.enter(group, s);
  const T* head_map = value + group.batch * s.batch_stride + group.head * s.head_stride;
  const int64_t column = group.column * s.token_stride;
  const int total = s.levels * s.points;
  for (int pass = 0; pass < s.channels; pass += s.row_lanes * VEC) {
    const int c = pass + group.row_lane * VEC;
    float sum[VEC] = {};
    for (int first = 0; first < total; first += group.lanes) {
      const int count = min(group.lanes, total - first);
      if (group.lane < count) {
        samples[group.lane] = source.sample(first + group.lane, levels, s);
        if (!group.is_real) samples[group.lane].corners = 0;
      }
      __syncwarp();
      if (c < s.channels) {
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const Sample at = samples[j];
          add_sample<T, VEC>(at, group, head_map + c, levels.width[at.level] * s.token_stride, column, sum);
        }
      }
      __syncwarp();
    }
#pragma unroll
    for (int n = 0; n < VEC; ++n) sum[n] += __shfl_xor_sync(kAllLanes, sum[n], s.row_lanes);
    if (group.is_real && group.column == 0 && c < s.channels) store<T, VEC>(output + group.row * s.channels + c, sum);
  }
}

// What a lane's channels and column contribute to the gradients of pixel position (x, y) and weight; adds to the gradient
// of the map on the way. `kept` is grad_output at the lane's first channels.
template <typename T, int VEC>
__device__ __forceinline__ float3 sample_gradients(const Sample& at, const Group& group, const T* __restrict__ map,
                                                   const T* __restrict__ grad_output, const float (&kept)[VEC],
                                                   const GradValue& grad_value, int64_t corner, int64_t row, float scale,
                                                   const Sizes& s) {
  const float along = group.column ? at.right : 1.f - at.right;
  float dot[2] = {};  // grad_output . value in the upper and lower row
  for (int c = group.row_lane * VEC; c < s.channels; c += s.row_lanes * VEC) {
    float g[VEC];
    if (c == group.row_lane * VEC) {
#pragma unroll
      for (int n = 0; n < VEC; ++n) g[n] = kept[n];
    } else {
      load<T, VEC>(grad_output + c, g);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (!at.has(k, group.column)) continue;
      const int64_t place = corner + k * row + c;
      float v[VEC];
      load<T, VEC>(map + place, v);
#pragma unroll
      for (int n = 0; n < VEC; ++n) dot[k] += g[n] * v[n];
      grad_value.add<VEC>(place, g, at.attention * along * (k ? at.lower : 1.f - at.lower), scale);
    }
  }
  const float between = (1.f - at.lower) * dot[0] + at.lower * dot[1];
  return make_float3(at.attention * (group.column ? between : -between), at.attention * along * (dot[1] - dot[0]),
                     along * between);
}

template <typename T, int VEC, typename Source>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad_output, const T* __restrict__ value, const Levels levels, Source source,
                    const GradValue grad_value, const Sizes s) {
  __shared__ Sample shared[kThreads];
  const Group group(s);
  Sample* samples = shared + (threadIdx.x - group.lane);
  source.enter(group, s);
  const int64_t head_map = group.batch * s.batch_stride + group.head * s.head_stride;
  const int total = s.levels * s.points;
  const T* own_output = grad_output + group.row * s.channels;
  const float scale = grad_value.scale();
  float kept[VEC] = {};
  if (group.row_lane * VEC < s.channels) load<T, VEC>(own_output + group.row_lane * VEC, kept);
  for (int first = 0; first < total; first += group.lanes) {
    const int count = min(group.lanes, total - first);
    if (group.lane < count) {
      Sample at = source.sample(first + group.lane, levels, s);
      grad_value.expect(at.attention);
      if (!group.is_real) at.corners = 0;
      samples[group.lane] = at;
    }
    __syncwarp();
    float3 own = make_float3(0.f, 0.f, 0.f);  // of the point this lane has located
    for (int j = 0; j < count; ++j) {
      const Sample at = samples[j];
      const int64_t corner = head_map + at.offset + group.column * s.token_stride;
      const int64_t row = levels.width[at.level] * s.token_stride;
      float3 grad = make_float3(at.outside, at.outside, at.outside);
      if (at.corners) {
        grad = sample_gradients<T, VEC>(at, group, value, own_output, kept, grad_value, corner, row, scale, s);
      }
      grad.x = sum_over_group(grad.x, group.lanes);
      grad.y = sum_over_group(grad.y, group.lanes);
      grad.z = sum_over_group(grad.z, group.lanes);
      if (group.lane == j) own = grad;
    }
    if (group.lane < count && group.is_real) source.store(first + group.lane, own, samples[group.lane], levels);
    __syncwarp();
  }
  source.finish(group, s);
}

}  // namespace
