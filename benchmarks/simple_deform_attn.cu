// Multi-scale deformable attention in the straightforward way, one thread for each channel of each output: what the
// optimised kernels are compared with. Scalar loads and atomics; locations, weights and sums are float32.
// value (B, S, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P), output (B, Q, M * D); shapes (L, 2) as
// (height, width) on the device.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#ifndef M2F_LAUNCH
#define M2F_LAUNCH(kernel, blocks, stream, ...) kernel<<<blocks, kThreads, 0, stream>>>(__VA_ARGS__)
#endif

constexpr int kThreads = 256;

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, levels, points;
};

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void from_float(float v, float* to) { *to = v; }
__device__ inline void from_float(float v, __half* to) { *to = __float2half_rn(v); }
__device__ inline void from_float(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }

// With grad_output: adds to the three gradients, else writes the output.
template <typename T>
__global__ void simple_kernel(const T* value, const int64_t* shapes, const float* locations, const float* weights,
                              T* output, const T* grad_output, float* grad_value, float* grad_locations,
                              float* grad_weights, Sizes s) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread / s.channels, head = row % s.heads, batch = row / s.heads / s.queries;
  if (batch >= s.batch) return;
  const int64_t stride = s.heads * s.channels, base = batch * s.tokens * stride + head * s.channels + thread % s.channels;
  const float gradient = grad_output ? to_float(grad_output[thread]) : 0.f;
  float sum = 0.f;
  int64_t start = 0, point = row * s.levels * s.points;
  for (int64_t l = 0; l < s.levels; ++l) {
    const int height = static_cast<int>(shapes[2 * l]), width = static_cast<int>(shapes[2 * l + 1]);
    for (int64_t p = 0; p < s.points; ++p, ++point) {
      const float x = locations[2 * point] * width - 0.5f, y = locations[2 * point + 1] * height - 0.5f;
      if (!(x > -1.f && x < width && y > -1.f && y < height)) continue;
      const int left = static_cast<int>(floorf(x)), top = static_cast<int>(floorf(y));
      float sample = 0.f, along_x = 0.f, along_y = 0.f;
      for (int k = 0; k < 4; ++k) {
        const int column = left + (k & 1), row_of = top + (k >> 1);
        if (column < 0 || column >= width || row_of < 0 || row_of >= height) continue;
        const float wx = k & 1 ? x - left : 1.f - (x - left), wy = k & 2 ? y - top : 1.f - (y - top);
        const int64_t at = base + (start + static_cast<int64_t>(row_of) * width + column) * stride;
        const float v = to_float(value[at]);
        sample += wx * wy * v;
        along_x += (k & 1 ? wy : -wy) * v;
        along_y += (k & 2 ? wx : -wx) * v;
        if (grad_output) atomicAdd(grad_value + at, weights[point] * wx * wy * gradient);
      }
      sum += weights[point] * sample;
      if (grad_output) {
        atomicAdd(grad_locations + 2 * point, gradient * weights[point] * along_x * width);
        atomicAdd(grad_locations + 2 * point + 1, gradient * weights[point] * along_y * height);
        atomicAdd(grad_weights + point, gradient * sample);
      }
    }
    start += static_cast<int64_t>(height) * width;
  }
  if (!grad_output) from_float(sum, output + thread);
}

template <typename T>
void run(const void* const* tensors, const Sizes& s, cudaStream_t stream) {
  auto in = [&](int i) { return static_cast<const T*>(tensors[i]); };
  auto floats = [&](int i) { return static_cast<float*>(const_cast<void*>(tensors[i])); };
  const int64_t threads = s.batch * s.queries * s.heads * s.channels;
  const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  const auto kernel = simple_kernel<T>;
  M2F_LAUNCH(kernel, blocks, stream, in(0), static_cast<const int64_t*>(tensors[1]), floats(2), floats(3),
             const_cast<T*>(in(4)), in(5), floats(6), floats(7), floats(8), s);
}

// tensors: value, shapes, locations, weights, output, grad_output or null, and its three zeroed float32 gradients.
// sizes: B, S, M, D, Q, L, P. dtype: 0 float32, 1 float16, 2 bfloat16.
extern "C" int simple_deform_attn(int dtype, const void* const* tensors, const int64_t* sizes, void* stream) {
  const Sizes s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  if (dtype == 0) run<float>(tensors, s, static_cast<cudaStream_t>(stream));
  if (dtype == 1) run<__half>(tensors, s, static_cast<cudaStream_t>(stream));
  if (dtype == 2) run<__nv_bfloat16>(tensors, s, static_cast<cudaStream_t>(stream));
  return cudaGetLastError();
}
