// Enough of CUDA to run the kernels on the host, one warp at a time with a thread for each lane: checks their
// arithmetic and indexing where there is no GPU. Slow, for tests only.
#pragma once

#include <stdlib.h>

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaError_t = int;
using cudaStream_t = void*;
struct cudaFuncAttributes {};
enum { cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(int) { return "error"; }
template <class Kernel>
int cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return 0;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline std::mutex memory;
inline void atomicAdd(float* to, float v) {
  std::lock_guard<std::mutex> guard(memory);
  *to += v;
}
inline void atomicAdd(float4* to, float4 v) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(float4) != 0) abort();  // a GPU would fault
  std::lock_guard<std::mutex> guard(memory);
  to->x += v.x, to->y += v.y, to->z += v.z, to->w += v.w;
}

namespace host {

constexpr int kLanes = 32;

struct Index {
  unsigned x;
};
struct Warp {
  float exchanged[kLanes];
  std::barrier<> all{kLanes};
};
inline thread_local Warp* warp;

}  // namespace host

inline thread_local host::Index blockIdx, threadIdx;

inline float __shfl_xor_sync(unsigned, float v, int offset) {
  const int lane = threadIdx.x % host::kLanes;
  host::warp->exchanged[lane] = v;
  host::warp->all.arrive_and_wait();
  const float other = host::warp->exchanged[lane ^ offset];
  host::warp->all.arrive_and_wait();
  return other;
}

namespace host {

template <class Body>
void launch(unsigned blocks, int threads, Body body) {
  for (unsigned block = 0; block < blocks; ++block) {
    for (int first = 0; first < threads; first += kLanes) {
      Warp shared;
      std::vector<std::thread> lanes;
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes.emplace_back([&, lane] {
          blockIdx.x = block, threadIdx.x = first + lane, warp = &shared;
          body();
          shared.all.arrive_and_drop();
        });
      }
      for (std::thread& thread : lanes) thread.join();
    }
  }
}

}  // namespace host
