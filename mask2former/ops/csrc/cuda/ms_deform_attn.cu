// CUDA library with a plain C interface: multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3),
// forward and backward, for float32, float16 and bfloat16 values; locations, weights and sums are float32.
//
// Layouts (row-major, contiguous): value (B, S, M, D); locations (B, Q, M, L, P, 2) as (x, y) in [0, 1]; weights
// (B, Q, M, L, P); output (B, Q, M * D). A group of neighbouring lanes serves one (batch item, query, head); each lane
// holds VEC channels, 16 bytes where D and the alignment allow it, so that a head's row is one coalesced load.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define M2F_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kAbiVersion = 1;
constexpr int kMaxLevels = 16;
constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 0x7fffffff;

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct Levels {
  int height[kMaxLevels], width[kMaxLevels];
  int64_t start[kMaxLevels];  // first token
};

struct Sizes {
  int64_t tokens, queries, groups;  // groups = B * Q * M
  int heads, channels, levels, points;
  int lanes;  // of a group: a power of two, at most a warp
};

template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T v[VEC];
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void from_float(float v, float* to) { *to = v; }
__device__ __forceinline__ void from_float(float v, __half* to) { *to = __float2half_rn(v); }
__device__ __forceinline__ void from_float(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }

template <typename T, int VEC>
__device__ __forceinline__ void load(const T* from, float (&to)[VEC]) {
  const Pack<T, VEC> pack = *reinterpret_cast<const Pack<T, VEC>*>(from);
#pragma unroll
  for (int i = 0; i < VEC; ++i) to[i] = to_float(pack.v[i]);
}

template <typename T, int VEC>
__device__ __forceinline__ void store(T* to, const float (&from)[VEC]) {
  Pack<T, VEC> pack;
#pragma unroll
  for (int i = 0; i < VEC; ++i) from_float(from[i], &pack.v[i]);
  *reinterpret_cast<Pack<T, VEC>*>(to) = pack;
}

template <int STEP>
__device__ __forceinline__ void add_step(float* to, const float* from, float factor) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12030
  if constexpr (STEP == 4) {
    const float4 sum = make_float4(factor * from[0], factor * from[1], factor * from[2], factor * from[3]);
    atomicAdd(reinterpret_cast<float4*>(to), sum);
  } else {
    atomicAdd(to, factor * from[0]);
  }
#else
  atomicAdd(to, factor * from[0]);
#endif
}

// Adds factor * from to global memory; nothing is returned, so the compiler emits reductions.
template <int VEC>
__device__ __forceinline__ void add_atomically(float* to, const float (&from)[VEC], float factor) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12030  // four floats at once
  constexpr int kStep = VEC % 4 == 0 ? 4 : 1;
#else
  constexpr int kStep = 1;
#endif
#pragma unroll
  for (int i = 0; i < VEC; i += kStep) add_step<kStep>(to + i, from + i, factor);
}

// A sampling point on its level.
struct Point {
  bool inside;    // touches the map
  float outside;  // factor of a point outside: 0, but not a number if its coordinates are not finite
  int x, y;     // pixel left of and above it, from -1
  float right, lower;

  __device__ __forceinline__ Point(float2 at, int width, int height) {
    const float px = at.x * width - 0.5f, py = at.y * height - 0.5f;
    outside = (px + py) * 0.f;
    inside = px > -1.f && px < width && py > -1.f && py < height;
    const float fx = floorf(inside ? px : 0.f), fy = floorf(inside ? py : 0.f);
    x = static_cast<int>(fx);
    y = static_cast<int>(fy);
    right = px - fx;
    lower = py - fy;
  }
  // Corner k = 2 * (lower row) + (right column).
  __device__ __forceinline__ bool has(int k, int width, int height) const {
    return (k & 1 ? x + 1 < width : x >= 0) && (k & 2 ? y + 1 < height : y >= 0);
  }
  __device__ __forceinline__ int64_t token(int k, int width) const {
    return static_cast<int64_t>(y + (k >> 1)) * width + x + (k & 1);
  }
  __device__ __forceinline__ float weight(int k) const {
    return (k & 1 ? right : 1.f - right) * (k & 2 ? lower : 1.f - lower);
  }
};

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads) forward_kernel(const T* __restrict__ value, const Levels levels,
                                                           const float2* __restrict__ locations,
                                                           const float* __restrict__ weights, T* __restrict__ output,
                                                           const Sizes s) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t group = thread / s.lanes;
  if (group >= s.groups) return;
  const int head = static_cast<int>(group % s.heads);
  const int64_t batch = group / s.heads / s.queries, stride = static_cast<int64_t>(s.heads) * s.channels;
  const int64_t first = group * s.levels * s.points;
  for (int c = static_cast<int>(thread % s.lanes) * VEC; c < s.channels; c += s.lanes * VEC) {
    const T* base = value + batch * s.tokens * stride + static_cast<int64_t>(head) * s.channels + c;
    float sum[VEC] = {};
    int64_t i = first;
    for (int l = 0; l < s.levels; ++l) {
      const int height = levels.height[l], width = levels.width[l];
      const T* map = base + levels.start[l] * stride;
      for (int p = 0; p < s.points; ++p, ++i) {
        const Point point(__ldg(locations + i), width, height);
        const float attention = __ldg(weights + i);
        if (!point.inside) {
#pragma unroll
          for (int n = 0; n < VEC; ++n) sum[n] += point.outside;
          continue;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (!point.has(k, width, height)) continue;
          const float w = attention * point.weight(k);
          float v[VEC];
          load<T, VEC>(map + point.token(k, width) * stride, v);
#pragma unroll
          for (int n = 0; n < VEC; ++n) sum[n] += w * v[n];
        }
      }
    }
    store<T, VEC>(output + group * s.channels + c, sum);
  }
}

__device__ __forceinline__ float sum_over_group(float v, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Gradients of one point. Scatters into grad_map and returns this lane's part of (grad x, grad y, grad weight).
template <typename T, int VEC>
__device__ __forceinline__ float3 point_gradients(const Point& point, float attention, int width, int height,
                                                  int64_t stride, int lane, const Sizes& s,
                                                  const T* __restrict__ grad_output, const T* __restrict__ map,
                                                  float* __restrict__ grad_map) {
  float dot[4] = {};  // grad_output . value at each corner
  for (int c = lane * VEC; c < s.channels; c += s.lanes * VEC) {
    float g[VEC];
    load<T, VEC>(grad_output + c, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!point.has(k, width, height)) continue;
      const int64_t at = point.token(k, width) * stride + c;
      float v[VEC];
      load<T, VEC>(map + at, v);
#pragma unroll
      for (int n = 0; n < VEC; ++n) dot[k] += g[n] * v[n];
      add_atomically<VEC>(grad_map + at, g, attention * point.weight(k));
    }
  }
  const float upper_row = (1.f - point.right) * dot[0] + point.right * dot[1];
  const float lower_row = (1.f - point.right) * dot[2] + point.right * dot[3];
  const float along_x = (1.f - point.lower) * (dot[1] - dot[0]) + point.lower * (dot[3] - dot[2]);
  return make_float3(attention * width * along_x, attention * height * (lower_row - upper_row),
                     (1.f - point.lower) * upper_row + point.lower * lower_row);
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* __restrict__ grad_output, const T* __restrict__ value, const Levels levels,
                    const float2* __restrict__ locations, const float* __restrict__ weights,
                    float* __restrict__ grad_value, float2* __restrict__ grad_locations,
                    float* __restrict__ grad_weights, const Sizes s) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = static_cast<int>(thread % s.lanes);
  // Groups past the end stay, as all lanes of a warp take part in its sums; they repeat the last one without writing.
  const bool is_real = thread / s.lanes < s.groups;
  const int64_t group = is_real ? thread / s.lanes : s.groups - 1;
  const int head = static_cast<int>(group % s.heads);
  const int64_t batch = group / s.heads / s.queries, stride = static_cast<int64_t>(s.heads) * s.channels;
  const int64_t base = batch * s.tokens * stride + static_cast<int64_t>(head) * s.channels;
  int64_t i = group * s.levels * s.points;
  for (int l = 0; l < s.levels; ++l) {
    const int height = levels.height[l], width = levels.width[l];
    const int64_t map = base + levels.start[l] * stride;
    for (int p = 0; p < s.points; ++p, ++i) {
      const Point point(__ldg(locations + i), width, height);
      float3 grad = make_float3(point.outside, point.outside, point.outside);
      if (point.inside && is_real) {
        grad = point_gradients<T, VEC>(point, __ldg(weights + i), width, height, stride, lane, s,
                                       grad_output + group * s.channels, value + map, grad_value + map);
      }
      grad.x = sum_over_group(grad.x, s.lanes);
      grad.y = sum_over_group(grad.y, s.lanes);
      grad.z = sum_over_group(grad.z, s.lanes);
      if (lane == 0 && is_real) {
        grad_locations[i] = make_float2(grad.x, grad.y);
        grad_weights[i] = grad.z;
      }
    }
  }
}

struct Arguments {
  const void *grad_output, *value, *locations, *weights;
  void *output, *grad_value, *grad_locations, *grad_weights;
  Levels levels;
  Sizes sizes;
  cudaStream_t stream;
};

// Channels a lane holds: 16 bytes if rows and pointers are aligned for it, else one.
template <typename T>
bool is_aligned(const Arguments& a) {
  constexpr int kVec = 16 / sizeof(T);
  // The gradient of value is float32 and written 16 bytes at a time.
  const uintptr_t bits = reinterpret_cast<uintptr_t>(a.grad_output) | reinterpret_cast<uintptr_t>(a.value) |
                         reinterpret_cast<uintptr_t>(a.output) | reinterpret_cast<uintptr_t>(a.grad_value);
  return a.sizes.channels % kVec == 0 && bits % 16 == 0;
}

template <typename T, int VEC>
int launch(Arguments& a) {
  Sizes& s = a.sizes;
  s.lanes = 1;
  while (s.lanes < kWarp && s.lanes * VEC < s.channels) s.lanes *= 2;
  const int64_t blocks = (s.groups * s.lanes + kThreads - 1) / kThreads;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  const auto* value = static_cast<const T*>(a.value);
  const auto* locations = static_cast<const float2*>(a.locations);
  const auto* weights = static_cast<const float*>(a.weights);
  const unsigned grid = static_cast<unsigned>(blocks);
  if (a.output) {
    forward_kernel<T, VEC><<<grid, kThreads, 0, a.stream>>>(value, a.levels, locations, weights,
                                                            static_cast<T*>(a.output), s);
  } else {
    backward_kernel<T, VEC><<<grid, kThreads, 0, a.stream>>>(
        static_cast<const T*>(a.grad_output), value, a.levels, locations, weights, static_cast<float*>(a.grad_value),
        static_cast<float2*>(a.grad_locations), static_cast<float*>(a.grad_weights), s);
  }
  return cudaGetLastError();
}

template <typename T>
int launch_vectorised(Arguments& a) {
  return is_aligned<T>(a) ? launch<T, 16 / sizeof(T)>(a) : launch<T, 1>(a);
}

int launch_dtype(int dtype, const int64_t* shapes, int64_t levels, int64_t batch, Arguments& a) {
  if (levels > kMaxLevels) return cudaErrorInvalidValue;
  int64_t start = 0;
  for (int64_t l = 0; l < levels; ++l) {
    a.levels.height[l] = static_cast<int>(shapes[2 * l]);
    a.levels.width[l] = static_cast<int>(shapes[2 * l + 1]);
    a.levels.start[l] = start;
    start += shapes[2 * l] * shapes[2 * l + 1];
  }
  a.sizes.groups = batch * a.sizes.queries * a.sizes.heads;
  switch (dtype) {
    case kFloat32: return launch_vectorised<float>(a);
    case kFloat16: return launch_vectorised<__half>(a);
    case kBFloat16: return launch_vectorised<__nv_bfloat16>(a);
    default: return cudaErrorInvalidValue;
  }
}

Sizes sizes_of(int64_t tokens, int64_t heads, int64_t channels, int64_t queries, int64_t levels, int64_t points) {
  return {tokens, queries, 0, static_cast<int>(heads), static_cast<int>(channels), static_cast<int>(levels),
          static_cast<int>(points), 1};
}

}  // namespace

M2F_EXPORT int m2f_abi_version() { return kAbiVersion; }

M2F_EXPORT const char* m2f_cuda_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// 0 when the driver and the current device can run these kernels.
M2F_EXPORT int m2f_cuda_probe() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, forward_kernel<float, 4>);
  cudaGetLastError();  // leave no error behind
  return status;
}

// Launched on `stream` of the calling thread's current device. Returns a cudaError_t; sizes are B, S, M, D, Q, L, P.
M2F_EXPORT int m2f_cuda_ms_deform_attn_forward(int dtype, const void* value, const int64_t* shapes,
                                               const void* locations, const void* weights, void* output, int64_t batch,
                                               int64_t tokens, int64_t heads, int64_t channels, int64_t queries,
                                               int64_t levels, int64_t points, void* stream) {
  Arguments a = {};
  a.value = value, a.locations = locations, a.weights = weights, a.output = output;
  a.sizes = sizes_of(tokens, heads, channels, queries, levels, points);
  a.stream = static_cast<cudaStream_t>(stream);
  return launch_dtype(dtype, shapes, levels, batch, a);
}

// grad_value is float32 whatever the dtype, and zeroed by the caller.
M2F_EXPORT int m2f_cuda_ms_deform_attn_backward(int dtype, const void* grad_output, const void* value,
                                                const int64_t* shapes, const void* locations, const void* weights,
                                                void* grad_value, void* grad_locations, void* grad_weights,
                                                int64_t batch, int64_t tokens, int64_t heads, int64_t channels,
                                                int64_t queries, int64_t levels, int64_t points, void* stream) {
  Arguments a = {};
  a.grad_output = grad_output, a.value = value, a.locations = locations, a.weights = weights;
  a.grad_value = grad_value, a.grad_locations = grad_locations, a.grad_weights = grad_weights;
  a.sizes = sizes_of(tokens, heads, channels, queries, levels, points);
  a.stream = static_cast<cudaStream_t>(stream);
  return launch_dtype(dtype, shapes, levels, batch, a);
}
