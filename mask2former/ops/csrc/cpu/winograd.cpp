// C interface of Winograd's transforms; the products between them are the caller's. Arguments are checked by the caller;
// see WinogradProblem in problem.h for layouts.
#include "library.h"
#include "parallel.h"

namespace {

using m2f::WinogradProblem;

// Tiles of a task: their 36 rows are neighbours in memory.
constexpr int64_t kTilesPerTask = 16;

struct Call {
  const WinogradProblem& problem;
  int64_t tiles;
  void (*transform)(const WinogradProblem&, int64_t begin, int64_t end, void* scratch);
};

void transform_task(const void* context, int64_t index, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t begin = index * kTilesPerTask, end = begin + kTilesPerTask;
  call.transform(call.problem, begin, end < call.tiles ? end : call.tiles, scratch);
}

int run(const Call& call, int threads) {
  const int64_t count = (call.tiles + kTilesPerTask - 1) / kTilesPerTask;
  const size_t scratch_bytes = static_cast<size_t>(call.problem.channels) * sizeof(float);
  return m2f::run_tasks(count, threads, scratch_bytes, transform_task, &call) ? 0 : m2f::kOutOfMemory;
}

}  // namespace

// Both transform `tiles` tiles from first_tile on, and return 0, or 1 when memory ran out.

// A map to what is multiplied: the input of the convolution or, where its weight's gradient is wanted, its output's.
M2F_EXPORT int m2f_winograd_tiles(int is_gradient, const float* map, float* transformed, int64_t stride, int64_t height,
                                  int64_t width, int64_t channels, int64_t first_tile, int64_t tiles, int threads) {
  const WinogradProblem pb = {map, transformed, stride, nullptr,  nullptr,   nullptr,
                              0,   height,      width,  channels, first_tile};
  return run({pb, tiles, is_gradient ? m2f::kernels->winograd_gradient : m2f::kernels->winograd_input}, threads);
}

// What was multiplied to the output.
M2F_EXPORT int m2f_winograd_output(float* transformed, int64_t stride, const float* scale, const float* shift, int relu,
                                   float* output, int64_t height, int64_t width, int64_t channels, int64_t first_tile,
                                   int64_t tiles, int threads) {
  const WinogradProblem pb = {nullptr, transformed, stride, output,   scale,     shift,
                              relu,    height,      width,  channels, first_tile};
  return run({pb, tiles, m2f::kernels->winograd_output}, threads);
}
