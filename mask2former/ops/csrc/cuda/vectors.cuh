// Several channels at once: loads and stores of up to 16 bytes, and additions to global memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

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

// Nothing is returned, so the compiler emits reductions.
template <int VEC>
__device__ __forceinline__ void add_floats(float* to, const float (&from)[VEC], float factor) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12030
  constexpr int kStep = VEC % 4 == 0 ? 4 : 1;  // four floats at once
#else
  constexpr int kStep = 1;
#endif
#pragma unroll
  for (int i = 0; i < VEC; i += kStep) add_step<kStep>(to + i, from + i, factor);
}

// The gradient of value, which many queries add to in any order: as float32, whose sums then differ in their last bits
// from run to run, or in fixed point, whose sums are exact and therefore always the same.
struct GradValue {
  float* floats;              // null: fixed point
  unsigned long long* fixed;  // two's complement, units of 1 / scaling[0]
  float* scaling;             // scaling[1] is the unit; not a number once something not finite was to be added

  template <int VEC>
  __device__ __forceinline__ void add(int64_t at, const float (&from)[VEC], float factor, float scale) const {
    if (floats) {
      add_floats<VEC>(floats + at, from, factor);
      return;
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      atomicAdd(fixed + at + i, static_cast<unsigned long long>(__float2ll_rn(factor * from[i] * scale)));
    }
  }
  __device__ __forceinline__ float scale() const { return floats ? 1.f : scaling[0]; }
  __device__ __forceinline__ void expect(float attention) const {
    if (!floats && !isfinite(attention)) scaling[1] = attention * 0.f;
  }
};

}  // namespace
