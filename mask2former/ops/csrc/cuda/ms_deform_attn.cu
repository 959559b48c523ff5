// CUDA library with a plain C interface: multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3),
// forward and backward, for float32, float16 and bfloat16 values; locations, weights and sums are float32.
//
// Layouts (row-major, contiguous): locations (B, Q, M, L, P, 2) as (x, y) in [0, 1]; weights (B, Q, M, L, P); output
// (B, Q, M * D). With centres (Q, 2) given, locations are offsets from them in pixels of each level and weights are logits of
// a softmax over L * P, both in the element type of value. value is (B, S, M, D) with strides for all but D, usually
// head by head: (B, M, S, D) in memory.
//
// Nothing here allocates, waits or reads device memory on the host: a call only launches, on the stream it is given.
// Slow paths: channels not divisible by 16 bytes are read one by one, more than 64 (float32) or 128 take several passes.
#include "kernels.cuh"

#define M2F_EXPORT extern "C" __attribute__((visibility("default")))
#ifndef M2F_LAUNCH
#define M2F_LAUNCH(kernel, blocks, stream, ...) kernel<<<blocks, kThreads, 0, stream>>>(__VA_ARGS__)
#endif

namespace {

constexpr int kAbiVersion = 3;

struct Call {
  const void *grad_output, *value, *locations, *weights, *centres;
  void *output, *grad_value, *grad_locations, *grad_weights;
  float* scaling;  // not null: the gradient of value is in fixed point, int64
  Levels levels;
  Sizes sizes;
  int64_t batch;
  cudaStream_t stream;
};

// Whether rows and pointers allow 16 bytes of channels at a time.
template <typename T>
bool is_aligned(const Call& call) {
  const Sizes& s = call.sizes;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(call.grad_output) | reinterpret_cast<uintptr_t>(call.value) |
                         reinterpret_cast<uintptr_t>(call.output) | reinterpret_cast<uintptr_t>(call.grad_value);
  const int64_t elements = s.channels | s.batch_stride | s.head_stride | s.token_stride;
  return elements % (16 / sizeof(T)) == 0 && bits % 16 == 0;
}

template <typename T, int VEC, typename Source>
int launch(Call& call, const Source& source) {
  Sizes& s = call.sizes;
  s.row_lanes = 1;
  while (s.row_lanes < kMostRowLanes && s.row_lanes * VEC < s.channels) s.row_lanes *= 2;
  const int64_t queries_of_block = kThreads / (2 * s.row_lanes);
  const int64_t tiles = (s.queries + queries_of_block - 1) / queries_of_block, blocks = call.batch * s.heads * tiles;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  s.tiles = static_cast<unsigned>(tiles);
  const unsigned grid = static_cast<unsigned>(blocks);
  const auto* value = static_cast<const T*>(call.value);
  if (call.output) {
    const auto kernel = forward_kernel<T, VEC, Source>;
    M2F_LAUNCH(kernel, grid, call.stream, value, call.levels, source, static_cast<T*>(call.output), s);
  } else {
    GradValue grad_value = {static_cast<float*>(call.grad_value), nullptr, call.scaling};
    if (call.scaling) grad_value = {nullptr, static_cast<unsigned long long*>(call.grad_value), call.scaling};
    const auto kernel = backward_kernel<T, VEC, Source>;
    M2F_LAUNCH(kernel, grid, call.stream, static_cast<const T*>(call.grad_output), value, call.levels, source, grad_value,
               s);
  }
  return cudaGetLastError();
}

template <typename T, typename Source>
int launch_vectorised(Call& call, const Source& source) {
  return is_aligned<T>(call) ? launch<T, 16 / sizeof(T)>(call, source) : launch<T, 1>(call, source);
}

template <typename T>
int launch_source(Call& call) {
  if (call.centres) {
    Around<T> around = {};
    around.centres = static_cast<const float2*>(call.centres);
    around.offsets = static_cast<const Pack<T, 2>*>(call.locations);
    around.logits = static_cast<const T*>(call.weights);
    around.grad_offsets = static_cast<Pack<T, 2>*>(call.grad_locations);
    around.grad_logits = static_cast<float*>(call.grad_weights);
    return launch_vectorised<T>(call, around);
  }
  Given given = {};
  given.locations = static_cast<const float2*>(call.locations);
  given.weights = static_cast<const float*>(call.weights);
  given.grad_locations = static_cast<float2*>(call.grad_locations);
  given.grad_weights = static_cast<float*>(call.grad_weights);
  return launch_vectorised<T>(call, given);
}

int launch_dtype(int dtype, Call& call) {
  switch (dtype) {
    case kFloat32: return launch_source<float>(call);
    case kFloat16: return launch_source<__half>(call);
    case kBFloat16: return launch_source<__nv_bfloat16>(call);
    default: return cudaErrorInvalidValue;
  }
}

// sizes: B, S, M, D, Q, L, P, then the strides of value over B, S and M in elements.
int read_sizes(const int64_t* sizes, const int64_t* shapes, Call& call) {
  const int64_t levels = sizes[5];
  if (levels > kMaxLevels) return cudaErrorInvalidValue;
  call.batch = sizes[0];
  Sizes& s = call.sizes;
  s.heads = static_cast<int>(sizes[2]), s.channels = static_cast<int>(sizes[3]), s.queries = sizes[4];
  s.levels = static_cast<int>(levels), s.points = static_cast<int>(sizes[6]);
  s.batch_stride = sizes[7], s.token_stride = sizes[8], s.head_stride = sizes[9];
  int64_t start = 0;
  for (int64_t l = 0; l < levels; ++l) {
    call.levels.height[l] = static_cast<int>(shapes[2 * l]);
    call.levels.width[l] = static_cast<int>(shapes[2 * l + 1]);
    call.levels.start[l] = start;
    start += shapes[2 * l] * shapes[2 * l + 1];
  }
  return cudaSuccess;
}

}  // namespace

M2F_EXPORT int m2f_abi_version() { return kAbiVersion; }

M2F_EXPORT const char* m2f_cuda_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// 0 when the driver and the current device can run these kernels.
M2F_EXPORT int m2f_cuda_probe() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, forward_kernel<float, 4, Given>);
  cudaGetLastError();  // leave no error behind
  return status;
}

// Both launch on `stream` of the calling thread's current device and return a cudaError_t.
M2F_EXPORT int m2f_cuda_ms_deform_attn_forward(int dtype, const void* value, const int64_t* shapes,
                                               const void* locations, const void* weights, const void* centres,
                                               void* output, const int64_t* sizes, void* stream) {
  Call call = {};
  call.value = value, call.locations = locations, call.weights = weights, call.centres = centres, call.output = output;
  call.stream = static_cast<cudaStream_t>(stream);
  const int status = read_sizes(sizes, shapes, call);
  return status ? status : launch_dtype(dtype, call);
}

// grad_value has value's strides and is zeroed by the caller: float32 whatever the dtype, or, with a scaling, int64 sums
// of what is to be added times scaling[0]. With centres grad_locations has the element type of value; grad_weights is
// always float32.
M2F_EXPORT int m2f_cuda_ms_deform_attn_backward(int dtype, const void* grad_output, const void* value,
                                                const int64_t* shapes, const void* locations, const void* weights,
                                                const void* centres, void* grad_value, void* grad_locations,
                                                void* grad_weights, const int64_t* sizes, void* scaling, void* stream) {
  Call call = {};
  call.grad_output = grad_output, call.value = value, call.locations = locations, call.weights = weights;
  call.centres = centres, call.grad_value = grad_value, call.grad_locations = grad_locations;
  call.grad_weights = grad_weights, call.scaling = static_cast<float*>(scaling);
  call.stream = static_cast<cudaStream_t>(stream);
  const int status = read_sizes(sizes, shapes, call);
  return status ? status : launch_dtype(dtype, call);
}
