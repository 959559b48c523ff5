// C interface of multi-scale deformable attention (Deformable DETR, arXiv:2010.04159, eq. 3), forward and
// backward. Arguments are checked by the caller; see problem.h for layouts.
#include "library.h"
#include "parallel.h"
#include "problem.h"

namespace {

using m2f::kernels;
using m2f::Problem;

constexpr int64_t kQueryTile = 64;
// Below this many multiply-adds of the forward pass waking other threads costs more than it saves.
constexpr int64_t kSerialWork = 200000;

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
  return done ? 0 : m2f::kOutOfMemory;
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
  return done ? 0 : m2f::kOutOfMemory;
}
