// C interface of the passes over maps and masks. Arguments are checked by the caller; see MapProblem, AddNormProblem,
// MaskProblem and WinnerProblem in problem.h for layouts. All return 0, or 1 when memory ran out.
#include "library.h"
#include "parallel.h"

namespace {

using m2f::AddNormProblem;
using m2f::MapProblem;
using m2f::MaskProblem;
using m2f::WinnerProblem;

constexpr int64_t kMomentPixels = 64;  // of a block, which is read twice and stays in the cache meanwhile
constexpr int64_t kAffinePixels = 512;
constexpr int64_t kNormRows = 64;
constexpr int64_t kWinnerPixels = 8192;

struct Blocks {
  const MapProblem& problem;
  int64_t per_image, size;
  double* moments;

  int64_t batch(int64_t index) const { return index / per_image; }
  int64_t begin(int64_t index) const { return index % per_image * size; }
  int64_t end(int64_t index) const {
    const int64_t end = begin(index) + size;
    return end < problem.pixels ? end : problem.pixels;
  }
};

Blocks blocks_of(const MapProblem& pb, int64_t size, double* moments) {
  return {pb, (pb.pixels + size - 1) / size, size, moments};
}

void moments_task(const void* context, int64_t index, void* scratch) {
  const Blocks& call = *static_cast<const Blocks*>(context);
  m2f::kernels->map_moments(call.problem, call.batch(index), call.begin(index), call.end(index),
                            call.moments + index * call.problem.groups * 2, scratch);
}

void affine_task(const void* context, int64_t index, void*) {
  const Blocks& call = *static_cast<const Blocks*>(context);
  m2f::kernels->map_affine(call.problem, call.batch(index), call.begin(index), call.end(index));
}

void add_resized_task(const void* context, int64_t index, void* scratch) {
  const MapProblem& pb = *static_cast<const MapProblem*>(context);
  const int64_t height = pb.pixels / pb.width;
  m2f::kernels->map_add_resized(pb, index / height, index % height, scratch);
}

void mask_task(const void* context, int64_t index, void* scratch) {
  m2f::kernels->mask_strip(*static_cast<const MaskProblem*>(context), index, scratch);
}

struct NormBlocks {
  const AddNormProblem& problem;
  int64_t rows;  // of all batch items
};

void add_norm_task(const void* context, int64_t index, void*) {
  const NormBlocks& call = *static_cast<const NormBlocks*>(context);
  const int64_t begin = index * kNormRows, end = begin + kNormRows;
  m2f::kernels->add_norm_rows(call.problem, begin, end < call.rows ? end : call.rows);
}

struct WinnerBlocks {
  const WinnerProblem& problem;
  int64_t* counts;
};

void winners_task(const void* context, int64_t index, void* scratch) {
  const WinnerBlocks& call = *static_cast<const WinnerBlocks*>(context);
  const int64_t begin = index * kWinnerPixels, end = begin + kWinnerPixels, pixels = call.problem.pixels;
  m2f::kernels->winners_block(call.problem, begin, end < pixels ? end : pixels,
                              call.counts + index * 3 * call.problem.masks, scratch);
}

int status_of(bool done) { return done ? 0 : m2f::kOutOfMemory; }

}  // namespace

// How many pixels a block of m2f_map_moments has; the last of an image may have fewer.
M2F_EXPORT int64_t m2f_map_moment_pixels() { return kMomentPixels; }

// moments: (batch, blocks, groups, 2), mean and sum of squared deviations.
M2F_EXPORT int m2f_map_moments(int dtype, void* map, double* moments, int64_t batch, int64_t pixels, int64_t channels,
                               int64_t groups, int threads) {
  const MapProblem pb = {dtype, map, pixels, channels, groups, nullptr, nullptr, 0, 0, nullptr, 0, 0};
  const Blocks call = blocks_of(pb, kMomentPixels, moments);
  const size_t scratch = static_cast<size_t>(2 * channels) * sizeof(float);
  return status_of(m2f::run_tasks(batch * call.per_image, threads, scratch, moments_task, &call));
}

M2F_EXPORT int m2f_map_affine(int dtype, void* map, const float* scale, const float* shift, int relu, int64_t batch,
                              int64_t pixels, int64_t channels, int threads) {
  const MapProblem pb = {dtype, map, pixels, channels, 0, scale, shift, relu, 0, nullptr, 0, 0};
  const Blocks call = blocks_of(pb, kAffinePixels, nullptr);
  return status_of(m2f::run_tasks(batch * call.per_image, threads, 0, affine_task, &call));
}

M2F_EXPORT int m2f_map_add_resized(int dtype, void* map, const void* above, int64_t batch, int64_t height,
                                   int64_t width, int64_t channels, int64_t above_height, int64_t above_width,
                                   int threads) {
  const MapProblem pb = {dtype, map, height * width, channels, 0, nullptr, nullptr, 0, width, above,
                         above_height, above_width};
  const size_t scratch = static_cast<size_t>(above_width * channels) * sizeof(float);
  return status_of(m2f::run_tasks(batch * height, threads, scratch, add_resized_task, &pb));
}

M2F_EXPORT int m2f_add_norm(int dtype, float* x, const void* y, const float* weight, const float* bias, float eps,
                            int64_t batch, int64_t rows, int64_t channels, int64_t stride, int threads) {
  const AddNormProblem pb = {dtype, x, y, weight, bias, eps, rows, channels, stride};
  const NormBlocks call = {pb, batch * rows};
  return status_of(m2f::run_tasks((call.rows + kNormRows - 1) / kNormRows, threads, 0, add_norm_task, &call));
}

M2F_EXPORT int m2f_mask_strip(const float* maps, int64_t masks, int64_t map_height, int64_t map_width,
                              const int32_t* row_first, const float* row_weights, int64_t row_taps,
                              const int32_t* column_first, const float* column_weights, int64_t column_taps,
                              int64_t begin, int64_t end, int64_t width, float least_logit, float* probs,
                              uint8_t* insides, float* sums, int threads) {
  const MaskProblem pb = {maps,        map_height, map_width, row_first, row_weights, row_taps, column_first, column_weights,
                          column_taps, begin,      end,       width,     least_logit, probs,    insides,      sums};
  return status_of(m2f::run_tasks(masks, threads, m2f::kernels->mask_scratch(pb), mask_task, &pb));
}

// How many pixels a block of m2f_winners has.
M2F_EXPORT int64_t m2f_winner_pixels() { return kWinnerPixels; }

// counts: (blocks, 3 * masks).
M2F_EXPORT int m2f_winners(const float* probs, const float* weights, int64_t masks, int64_t pixels, float threshold,
                           int32_t* numbers, int64_t* counts, int threads) {
  const WinnerProblem pb = {probs, weights, masks, pixels, threshold, numbers};
  const WinnerBlocks call = {pb, counts};
  const int64_t blocks = (pixels + kWinnerPixels - 1) / kWinnerPixels;
  return status_of(m2f::run_tasks(blocks, threads, m2f::kernels->winners_scratch(pb), winners_task, &call));
}
