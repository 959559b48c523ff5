// C interface of the CPU library: multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3), forward
// and backward. Arguments are checked by the caller; see problem.h for layouts.
#include "parallel.h"
#include "problem.h"

#define M2F_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using m2f::Kernels;
using m2f::Problem;

constexpr int kAbiVersion = 2;
constexpr int kOutOfMemory = 1;
constexpr int64_t kQueryTile = 64;
// Below this many multiply-adds of the forward pass waking other threads costs more than it saves.
constexpr int64_t kSerialWork = 200000;

const Kernels* table_of(int level) {
#if defined(M2F_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (level >= 2 && avx512) return &m2f_kernels_avx512;
  if (level >= 1 && avx2) return &m2f_kernels_avx2;
#endif
  (void)level;
  return &m2f_kernels_portable;
}

const Kernels* kernels = table_of(2);

int64_t work_of(const Problem& pb) {
  return pb.batch * pb.queries * pb.heads * pb.levels * pb.points * pb.channels * 4;
}

struct Call {
  const Problem& problem;
  int64_t tiles;   // forward: tiles of queries of a batch item
  int64_t stride;  // backward: see slice_task
  int64_t count;
};

void tile_task(const void* context, int64_t index, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t begin = index % call.tiles * kQueryTile, end = begin + kQueryTile;
  const int64_t queries = call.problem.queries;
  kernels->forward_tile(call.problem, index / call.tiles, begin, end < queries ? end : queries, scratch);
}

// Neighbouring slices write into the same cache lines of the locations' gradients: threads that start together are
// sent to slices far apart.
void slice_task(const void* context, int64_t index, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const Problem& pb = call.problem;
  const int64_t rows = (call.count + call.stride - 1) / call.stride, full = call.count - (rows - 1) * call.stride;
  // Column `index % stride` of a table with `rows` rows, filled column by column; columns after `full` lack the last row.
  const int64_t column = index % call.stride, row = index / call.stride;
  const int64_t slice = column * rows - (column > full ? column - full : 0) + row;
  const int64_t level = slice % pb.levels, head = slice / pb.levels % pb.heads;
  kernels->backward_slice(pb, slice / pb.levels / pb.heads, head, level, scratch);
}

}  // namespace

M2F_EXPORT int m2f_abi_version() { return kAbiVersion; }

// "avx512", "avx2" or "portable".
M2F_EXPORT const char* m2f_instruction_set() { return kernels->name; }

// Limits the instruction set (0 portable, 1 AVX2, 2 AVX-512) to test and compare; returns the one now in use.
M2F_EXPORT const char* m2f_limit_instruction_set(int level) {
  kernels = table_of(level);
  return kernels->name;
}

// Null: threads are started for each call.
M2F_EXPORT void m2f_use_gomp_parallel(void* function) {
  m2f::set_gomp_parallel(reinterpret_cast<m2f::GompParallel>(function));
}

M2F_EXPORT const char* m2f_threading() { return m2f::threading_name(); }

// Both return 0, or 1 when memory ran out. The forward pass takes offsets and logits where centres are not null.
M2F_EXPORT int m2f_ms_deform_attn_forward(int dtype, const void* value, const int64_t* shapes, const void* locations,
                                          const void* weights, void* output, int64_t batch, int64_t tokens,
                                          int64_t heads, int64_t channels, int64_t queries, int64_t levels,
                                          int64_t points, const void* centres, int threads) {
  const Problem pb = {dtype,   value, shapes, locations, weights,  nullptr, output, nullptr, nullptr,
                      nullptr, batch, tokens, heads,     channels, queries, levels, points,  centres};
  const Call call = {pb, (queries + kQueryTile - 1) / kQueryTile, 1, 0};
  const int used = work_of(pb) < kSerialWork ? 1 : threads;
  const bool done = m2f::run_tasks(batch * call.tiles, used, kernels->forward_scratch(pb), tile_task, &call);
  return done ? 0 : kOutOfMemory;
}

M2F_EXPORT int m2f_ms_deform_attn_backward(int dtype, const void* grad_output, const void* value,
                                           const int64_t* shapes, const void* locations, const void* weights,
                                           void* grad_value, void* grad_locations, void* grad_weights, int64_t batch,
                                           int64_t tokens, int64_t heads, int64_t channels, int64_t queries,
                                           int64_t levels, int64_t points, int threads) {
  const Problem pb = {dtype,          value,        shapes, locations, weights, grad_output, nullptr, grad_value,
                      grad_locations, grad_weights, batch,  tokens,    heads,   channels,    queries, levels,
                      points,         nullptr};
  const int64_t count = batch * heads * levels;
  const int used = work_of(pb) < kSerialWork ? 1 : threads;
  const Call call = {pb, 0, used < count ? used : count, count};
  const bool done = m2f::run_tasks(count, used, kernels->backward_scratch(pb), slice_task, &call);
  return done ? 0 : kOutOfMemory;
}
