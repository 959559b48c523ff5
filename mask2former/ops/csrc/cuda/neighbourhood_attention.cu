// Dilated neighbourhood attention (arXiv:2209.15001), forward and backward, for float32, float16 and bfloat16; bias, sums
// and the gradient of the bias are float32. Part of the CUDA library; layouts as in csrc/cpu/problem.h.
//
// A group of neighbouring lanes serves one (batch item, head, query), each lane VEC channels, and goes through the window
// with a running maximum. Groups follow each other within a residue class, so that their windows overlap in the cache.
// The backward pass has two kernels: over queries, and over keys, each of which knows which queries see it, so that only
// the gradient of the bias needs atomics. Nothing here allocates, waits or reads device memory on the host.
#include "problem.cuh"
#include "vectors.cuh"

#define M2F_EXPORT extern "C" __attribute__((visibility("default")))
#ifndef M2F_LAUNCH
#define M2F_LAUNCH(kernel, blocks, stream, ...) kernel<<<blocks, kThreads, 0, stream>>>(__VA_ARGS__)
#endif

namespace {

constexpr int kWarp = 32;

struct Strided {
  int64_t batch, row, column, head;  // in elements

  __device__ __forceinline__ int64_t at(int64_t b, int y, int x, int m) const {
    return b * batch + y * row + x * column + m * head;
  }
};

struct Neighbourhood {
  int64_t batch;
  int heads, channels, query_height, query_width, height, width, kernel, dilation;
  Strided query, key, value;
  float scale;
  int lanes;  // of a group: a power of two

  // Of what lies in memory without gaps.
  __device__ __forceinline__ int64_t query_row(int64_t b, int y, int x, int m) const {
    return ((b * query_height + y) * query_width + x) * heads + m;
  }
  __device__ __forceinline__ int64_t key_row(int64_t b, int y, int x, int m) const {
    return ((b * height + y) * width + x) * heads + m;
  }
  __device__ __forceinline__ int side() const { return 2 * kernel - 1; }
};

// A position along one axis, as member `number` of its residue class, which has `keys` members.
struct Member {
  int position, residue, number, keys;

  __device__ __forceinline__ Member(int position, int length, int dilation)
      : position(position),
        residue(position % dilation),
        number(position / dilation),
        keys((length - position % dilation + dilation - 1) / dilation) {}
  __device__ __forceinline__ int start(int kernel) const {
    const int first = number - kernel / 2, last = keys - kernel;
    return first < 0 ? 0 : (first > last ? last : first);
  }
  // First and last query, as members of the class, whose windows hold this key.
  __device__ __forceinline__ int first_query(int kernel) const { return number < kernel ? 0 : number - kernel / 2; }
  __device__ __forceinline__ int last_query(int kernel, int num_queries, int dilation) const {
    const int queries = num_queries > residue ? (num_queries - residue + dilation - 1) / dilation : 0;
    const int last = number >= keys - kernel ? keys - 1 : number + kernel / 2;
    return last < queries - 1 ? last : queries - 1;
  }
};

// The pixel that number `index` of rows * columns stands for when residue classes follow each other; false where a class
// is shorter than others. Lengths are padded to multiples of the dilation.
__device__ __forceinline__ int ordered_position(int index, int length, int dilation) {
  const int longest = (length + dilation - 1) / dilation;
  return index % longest * dilation + index / longest;
}

// Where a thread belongs. Threads past the last pixel stay, as all lanes of a warp take part in its sums; they repeat
// pixel 0 without writing.
struct PixelGroup {
  bool is_real;
  int lane, channel, head, y, x;
  int64_t batch;

  template <int VEC>
  static __device__ __forceinline__ PixelGroup of(const Neighbourhood& p, int height, int width) {
    PixelGroup g;
    g.lane = static_cast<int>(threadIdx.x) & (p.lanes - 1);
    g.channel = g.lane * VEC;
    const int rows = (height + p.dilation - 1) / p.dilation * p.dilation;
    const int columns = (width + p.dilation - 1) / p.dilation * p.dilation;
    int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / p.lanes) + threadIdx.x / p.lanes;
    g.x = ordered_position(static_cast<int>(index % columns), width, p.dilation);
    index /= columns;
    g.y = ordered_position(static_cast<int>(index % rows), height, p.dilation);
    index /= rows;
    g.head = static_cast<int>(index % p.heads);
    g.batch = index / p.heads;
    g.is_real = g.batch < p.batch && g.y < height && g.x < width;
    if (!g.is_real) g.batch = 0, g.y = 0, g.x = 0;
    return g;
  }
};

template <typename T, int VEC>
__device__ __forceinline__ void load_channels(const Neighbourhood& p, const PixelGroup& g, const T* from, float factor,
                                              float (&to)[VEC]) {
  if (g.channel < p.channels) {
    load<T, VEC>(from + g.channel, to);
#pragma unroll
    for (int n = 0; n < VEC; ++n) to[n] *= factor;
  } else {
#pragma unroll
    for (int n = 0; n < VEC; ++n) to[n] = 0.f;
  }
}

template <int VEC>
__device__ __forceinline__ float dot_over_group(const Neighbourhood& p, const float (&a)[VEC], const float (&b)[VEC]) {
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < VEC; ++n) sum += a[n] * b[n];
  return sum_over_group(sum, p.lanes);
}

// A softmax that sees its logits one by one.
struct Running {
  float most = -INFINITY, total = 0.f;

  // Returns the weight of the logit, and sets the factor on what was summed before.
  __device__ __forceinline__ float add(float logit, float* factor) {
    const float larger = fmaxf(most, logit), base = larger == -INFINITY ? 0.f : larger;
    *factor = expf(most - base);
    const float weight = expf(logit - base);
    total = total * *factor + weight;
    most = larger;
    return weight;
  }
};

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    neighbourhood_forward_kernel(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value,
                                 const float* __restrict__ bias, T* __restrict__ output, const Neighbourhood p) {
  const PixelGroup g = PixelGroup::of<VEC>(p, p.query_height, p.query_width);
  const Member y(g.y, p.height, p.dilation), x(g.x, p.width, p.dilation);
  const int top = y.start(p.kernel), left = x.start(p.kernel);
  float q[VEC], sum[VEC] = {};
  load_channels<T, VEC>(p, g, query + p.query.at(g.batch, g.y, g.x, g.head), p.scale, q);
  const float* entries = bias + static_cast<int64_t>(g.head) * p.side() * p.side();
  entries += (p.kernel - 1 + top - y.number) * p.side() + p.kernel - 1 + left - x.number;
  Running softmax;
  for (int j = 0; j < p.kernel; ++j) {
    for (int i = 0; i < p.kernel; ++i) {
      const int key_y = (top + j) * p.dilation + y.residue, key_x = (left + i) * p.dilation + x.residue;
      float k[VEC], v[VEC], factor;
      load_channels<T, VEC>(p, g, key + p.key.at(g.batch, key_y, key_x, g.head), 1.f, k);
      load_channels<T, VEC>(p, g, value + p.value.at(g.batch, key_y, key_x, g.head), 1.f, v);
      const float weight = softmax.add(dot_over_group<VEC>(p, q, k) + __ldg(entries + j * p.side() + i), &factor);
#pragma unroll
      for (int n = 0; n < VEC; ++n) sum[n] = sum[n] * factor + weight * v[n];
    }
  }
  if (!g.is_real || g.channel >= p.channels) return;
#pragma unroll
  for (int n = 0; n < VEC; ++n) sum[n] /= softmax.total;
  store<T, VEC>(output + p.query_row(g.batch, g.y, g.x, g.head) * p.channels + g.channel, sum);
}

// Gradients of queries and bias; keeps for the keys each query's log of the sum of exponentials, and the mean of its
// weights' gradients under the weights.
template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    neighbourhood_query_kernel(const T* __restrict__ grad_output, const T* __restrict__ query,
                               const T* __restrict__ key, const T* __restrict__ value, const float* __restrict__ bias,
                               T* __restrict__ grad_query, float* grad_bias, float2* __restrict__ kept,
                               const Neighbourhood p) {
  const PixelGroup g = PixelGroup::of<VEC>(p, p.query_height, p.query_width);
  const Member y(g.y, p.height, p.dilation), x(g.x, p.width, p.dilation);
  const int top = y.start(p.kernel), left = x.start(p.kernel);
  const int64_t row = p.query_row(g.batch, g.y, g.x, g.head);
  float q[VEC], grad[VEC], sum[VEC] = {};
  load_channels<T, VEC>(p, g, query + p.query.at(g.batch, g.y, g.x, g.head), p.scale, q);
  load_channels<T, VEC>(p, g, grad_output + row * p.channels, 1.f, grad);
  int64_t entry = static_cast<int64_t>(g.head) * p.side() * p.side();
  entry += (p.kernel - 1 + top - y.number) * p.side() + p.kernel - 1 + left - x.number;
  Running softmax;
  float mean = 0.f, log_sum = 0.f;
  for (int pass = 0; pass < 2; ++pass) {
    for (int j = 0; j < p.kernel; ++j) {
      for (int i = 0; i < p.kernel; ++i) {
        const int key_y = (top + j) * p.dilation + y.residue, key_x = (left + i) * p.dilation + x.residue;
        float k[VEC], v[VEC];
        load_channels<T, VEC>(p, g, key + p.key.at(g.batch, key_y, key_x, g.head), 1.f, k);
        load_channels<T, VEC>(p, g, value + p.value.at(g.batch, key_y, key_x, g.head), 1.f, v);
        const float logit = dot_over_group<VEC>(p, q, k) + __ldg(bias + entry + j * p.side() + i);
        const float grad_weight = dot_over_group<VEC>(p, grad, v);
        if (pass == 0) {
          float factor;
          const float weight = softmax.add(logit, &factor);
          mean = mean * factor + weight * grad_weight;
          continue;
        }
        const float grad_logit = expf(logit - log_sum) * (grad_weight - mean);
#pragma unroll
        for (int n = 0; n < VEC; ++n) sum[n] += grad_logit * k[n];
        if (g.is_real && g.lane == 0) atomicAdd(grad_bias + entry + j * p.side() + i, grad_logit);
      }
    }
    if (pass == 0) mean /= softmax.total, log_sum = softmax.most + logf(softmax.total);
  }
  if (!g.is_real) return;
  if (g.lane == 0) kept[row] = make_float2(log_sum, mean);
  if (g.channel >= p.channels) return;
#pragma unroll
  for (int n = 0; n < VEC; ++n) sum[n] *= p.scale;
  store<T, VEC>(grad_query + row * p.channels + g.channel, sum);
}

template <typename T, int VEC>
__global__ void __launch_bounds__(kThreads)
    neighbourhood_key_kernel(const T* __restrict__ grad_output, const T* __restrict__ query, const T* __restrict__ key,
                             const T* __restrict__ value, const float* __restrict__ bias,
                             const float2* __restrict__ kept, T* __restrict__ grad_key, T* __restrict__ grad_value,
                             const Neighbourhood p) {
  const PixelGroup g = PixelGroup::of<VEC>(p, p.height, p.width);
  const Member y(g.y, p.height, p.dilation), x(g.x, p.width, p.dilation);
  const int first_y = y.first_query(p.kernel), first_x = x.first_query(p.kernel);
  const int rows = y.last_query(p.kernel, p.query_height, p.dilation) - first_y + 1;
  const int columns = x.last_query(p.kernel, p.query_width, p.dilation) - first_x + 1;
  const int count = rows > 0 && columns > 0 ? rows * columns : 0;
  const int most = static_cast<int>(max_over_group(static_cast<float>(count), kWarp));  // in step for the sums
  float k[VEC], v[VEC], sum_key[VEC] = {}, sum_value[VEC] = {};
  load_channels<T, VEC>(p, g, key + p.key.at(g.batch, g.y, g.x, g.head), 1.f, k);
  load_channels<T, VEC>(p, g, value + p.value.at(g.batch, g.y, g.x, g.head), 1.f, v);
  const float* entries = bias + static_cast<int64_t>(g.head) * p.side() * p.side();
  for (int n = 0; n < most; ++n) {
    const bool sees = n < count;
    const int number_y = sees ? first_y + n / columns : 0, number_x = sees ? first_x + n % columns : 0;
    const int query_y = sees ? number_y * p.dilation + y.residue : 0;
    const int query_x = sees ? number_x * p.dilation + x.residue : 0;
    const int64_t row = p.query_row(g.batch, query_y, query_x, g.head);
    float q[VEC], grad[VEC];
    load_channels<T, VEC>(p, g, query + p.query.at(g.batch, query_y, query_x, g.head), p.scale, q);
    load_channels<T, VEC>(p, g, grad_output + row * p.channels, 1.f, grad);
    const float product = dot_over_group<VEC>(p, q, k), grad_weight = dot_over_group<VEC>(p, grad, v);
    if (!sees) continue;
    const int entry = (p.kernel - 1 + y.number - number_y) * p.side() + p.kernel - 1 + x.number - number_x;
    const float2 of_query = kept[row];
    const float weight = expf(product + __ldg(entries + entry) - of_query.x);
    const float grad_logit = weight * (grad_weight - of_query.y);
#pragma unroll
    for (int c = 0; c < VEC; ++c) sum_key[c] += grad_logit * q[c], sum_value[c] += weight * grad[c];
  }
  if (!g.is_real || g.channel >= p.channels) return;
  const int64_t place = p.key_row(g.batch, g.y, g.x, g.head) * p.channels + g.channel;
  store<T, VEC>(grad_key + place, sum_key);
  store<T, VEC>(grad_value + place, sum_value);
}

struct NeighbourhoodCall {
  const void *grad_output, *query, *key, *value;
  const float* bias;
  void *output, *grad_query, *grad_key, *grad_value;
  float* grad_bias;
  float2* kept;
  Neighbourhood sizes;
  cudaStream_t stream;
};

// sizes: B, M, D, h, w, H, W, k, dilation, then the strides of query, key and value over B, rows, columns and M.
void read_neighbourhood(const int64_t* sizes, double scale, Neighbourhood* p) {
  p->batch = *sizes++;
  int* const targets[] = {&p->heads,  &p->channels, &p->query_height, &p->query_width,
                          &p->height, &p->width,    &p->kernel,       &p->dilation};
  for (int* target : targets) *target = static_cast<int>(*sizes++);
  Strided* const maps[] = {&p->query, &p->key, &p->value};
  for (Strided* map : maps) {
    map->batch = *sizes++, map->row = *sizes++, map->column = *sizes++, map->head = *sizes++;
  }
  p->scale = static_cast<float>(scale);
}

// Blocks for the groups of a map; more than a grid has: kMaxBlocks + 1.
int64_t blocks_for(const Neighbourhood& p, int height, int width) {
  const int64_t rows = (height + p.dilation - 1) / p.dilation * p.dilation;
  const int64_t columns = (width + p.dilation - 1) / p.dilation * p.dilation;
  const int64_t groups = p.batch * p.heads * rows * columns, of_block = kThreads / p.lanes;
  return (groups + of_block - 1) / of_block;
}

template <typename T, int VEC>
int launch_neighbourhood(NeighbourhoodCall& call) {
  Neighbourhood& p = call.sizes;
  p.lanes = 1;
  while (p.lanes * VEC < p.channels) p.lanes *= 2;
  if (p.lanes > kWarp) return cudaErrorInvalidValue;
  const int64_t of_queries = blocks_for(p, p.query_height, p.query_width), of_keys = blocks_for(p, p.height, p.width);
  if (of_keys > kMaxBlocks) return cudaErrorInvalidConfiguration;
  const auto *query = static_cast<const T*>(call.query), *key = static_cast<const T*>(call.key);
  const auto *value = static_cast<const T*>(call.value), *grad_output = static_cast<const T*>(call.grad_output);
  if (call.output) {
    const auto kernel = neighbourhood_forward_kernel<T, VEC>;
    M2F_LAUNCH(kernel, static_cast<unsigned>(of_queries), call.stream, query, key, value, call.bias,
               static_cast<T*>(call.output), p);
    return cudaGetLastError();
  }
  const auto query_kernel = neighbourhood_query_kernel<T, VEC>;
  M2F_LAUNCH(query_kernel, static_cast<unsigned>(of_queries), call.stream, grad_output, query, key, value, call.bias,
             static_cast<T*>(call.grad_query), call.grad_bias, call.kept, p);
  const auto key_kernel = neighbourhood_key_kernel<T, VEC>;
  M2F_LAUNCH(key_kernel, static_cast<unsigned>(of_keys), call.stream, grad_output, query, key, value, call.bias, call.kept,
             static_cast<T*>(call.grad_key), static_cast<T*>(call.grad_value), p);
  return cudaGetLastError();
}

// Whether rows and pointers allow 16 bytes of channels at a time.
template <typename T>
bool is_neighbourhood_aligned(const NeighbourhoodCall& call) {
  const Neighbourhood& p = call.sizes;
  uintptr_t bits = 0;
  const void* const pointers[] = {call.grad_output, call.query,      call.key,      call.value,
                                  call.output,      call.grad_query, call.grad_key, call.grad_value};
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  int64_t elements = p.channels;
  const Strided* const maps[] = {&p.query, &p.key, &p.value};
  for (const Strided* map : maps) elements |= map->batch | map->row | map->column | map->head;
  return elements % static_cast<int64_t>(16 / sizeof(T)) == 0 && bits % 16 == 0;
}

template <typename T>
int launch_neighbourhood_of(NeighbourhoodCall& call) {
  return is_neighbourhood_aligned<T>(call) ? launch_neighbourhood<T, 16 / sizeof(T)>(call)
                                           : launch_neighbourhood<T, 1>(call);
}

int launch_neighbourhood_dtype(int dtype, NeighbourhoodCall& call) {
  switch (dtype) {
    case kFloat32: return launch_neighbourhood_of<float>(call);
    case kFloat16: return launch_neighbourhood_of<__half>(call);
    case kBFloat16: return launch_neighbourhood_of<__nv_bfloat16>(call);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

// Both launch on `stream` of the calling thread's current device and return a cudaError_t. At most 32 channels, or those
// of 32 times 16 bytes where all rows and pointers are multiples of 16 bytes.
M2F_EXPORT int m2f_cuda_neighbourhood_forward(int dtype, const void* query, const void* key, const void* value,
                                              const void* bias, void* output, const int64_t* sizes, double scale,
                                              void* stream) {
  NeighbourhoodCall call = {};
  call.query = query, call.key = key, call.value = value, call.bias = static_cast<const float*>(bias);
  call.output = output, call.stream = static_cast<cudaStream_t>(stream);
  read_neighbourhood(sizes, scale, &call.sizes);
  return launch_neighbourhood_dtype(dtype, call);
}

// grad_bias is zeroed by the caller; kept is working space for two float32 for each query and head.
M2F_EXPORT int m2f_cuda_neighbourhood_backward(int dtype, const void* grad_output, const void* query, const void* key,
                                               const void* value, const void* bias, void* grad_query, void* grad_key,
                                               void* grad_value, void* grad_bias, void* kept, const int64_t* sizes,
                                               double scale, void* stream) {
  NeighbourhoodCall call = {};
  call.grad_output = grad_output, call.query = query, call.key = key, call.value = value;
  call.bias = static_cast<const float*>(bias), call.grad_query = grad_query, call.grad_key = grad_key;
  call.grad_value = grad_value, call.grad_bias = static_cast<float*>(grad_bias), call.kept = static_cast<float2*>(kept);
  call.stream = static_cast<cudaStream_t>(stream);
  read_neighbourhood(sizes, scale, &call.sizes);
  return launch_neighbourhood_dtype(dtype, call);
}
