// Enough of CUDA to run the kernels on the host, one warp at a time: checks their arithmetic and indexing where there is
// no GPU. The lanes of a warp are coroutines that take turns from one barrier or exchange to the next, all of which every
// lane that has not ended must reach; one that does not aborts, where a GPU would hang or exchange garbage.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static  // one warp at a time, and blocks share nothing across warps

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

using std::isfinite;
using std::min;

using cudaError_t = int;
using cudaStream_t = void*;
struct cudaFuncAttributes {};
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
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
inline long long __float2ll_rn(float v) { return isfinite(v) ? llrintf(v) : INT64_MIN; }

inline void atomicAdd(float* to, float v) { *to += v; }
inline void atomicAdd(unsigned long long* to, unsigned long long v) { *to += v; }
inline void atomicAdd(float4* to, float4 v) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(float4) != 0) abort();  // a GPU would fault
  to->x += v.x, to->y += v.y, to->z += v.z, to->w += v.w;
}

namespace host {

constexpr int kLanes = 32, kStackBytes = 1 << 16;

struct Index {
  unsigned x;
};
struct Lane {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  bool has_ended;
  int barriers;  // reached so far
};
inline Lane lanes[kLanes];
inline ucontext_t scheduler;
inline int current;
inline float exchanged[kLanes];
inline std::function<void()> body;

inline void run_lane() {
  body();
  lanes[current].has_ended = true;
  swapcontext(&lanes[current].context, &scheduler);
}

}  // namespace host

inline host::Index blockIdx, threadIdx, blockDim;

inline void __syncwarp() {
  host::Lane& lane = host::lanes[host::current];
  ++lane.barriers;
  swapcontext(&lane.context, &host::scheduler);
}

inline float __shfl_xor_sync(unsigned, float v, int offset) {
  const int lane = host::current;
  host::exchanged[lane] = v;
  __syncwarp();
  const float other = host::exchanged[lane ^ offset];
  __syncwarp();
  return other;
}

namespace host {

inline void run_warp(unsigned first) {
  for (Lane& lane : lanes) {
    lane.has_ended = false, lane.barriers = 0;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = lane.stack.size();
    makecontext(&lane.context, run_lane, 0);
  }
  for (int running = kLanes, round = 1; running > 0; ++round) {
    running = 0;
    for (current = 0; current < kLanes; ++current) {
      if (lanes[current].has_ended) continue;
      threadIdx.x = first + current;
      swapcontext(&scheduler, &lanes[current].context);
      if (lanes[current].has_ended) continue;
      ++running;
      if (lanes[current].barriers != round) abort();
    }
    if (running != 0 && running != kLanes) {
      fprintf(stderr, "%d of %d lanes wait for others that have ended\n", running, kLanes);
      abort();
    }
  }
}

template <class Kernel, class... Arguments>
void launch(Kernel kernel, unsigned blocks, int threads, const Arguments&... arguments) {
  body = [&] { kernel(arguments...); };
  blockDim.x = threads;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    for (int first = 0; first < threads; first += kLanes) run_warp(first);
  }
}

}  // namespace host

#define M2F_LAUNCH(kernel, blocks, stream, ...) host::launch(kernel, blocks, kThreads, __VA_ARGS__)
