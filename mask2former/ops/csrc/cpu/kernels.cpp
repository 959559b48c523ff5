// Compiled once per instruction set, with M2F_KERNELS naming the table and M2F_VECTOR_BYTES its register width.
#include "attention.h"
#include "backward.h"
#include "forward.h"
#include "maps.h"
#include "masks.h"
#include "neighbourhood.h"
#include "winograd.h"

namespace {

size_t forward_scratch(const m2f::Problem& pb) {
  Arena arena(nullptr);  // the largest types: enough for every combination
  return ForwardPlan<double, int64_t>::layout(&arena, pb.heads * pb.levels * pb.points, nullptr);
}

size_t backward_scratch(const m2f::Problem& pb) {
  return pb.dtype == m2f::kFloat64 ? backward_scratch_of<double>(pb) : backward_scratch_of<float>(pb);
}

void forward_tile(const m2f::Problem& pb, int64_t batch, int64_t begin, int64_t end, void* scratch) {
  switch (pb.dtype) {
    case m2f::kFloat64: return forward_tile_any<double>(pb, batch, begin, end, scratch);
    case m2f::kBFloat16: return forward_tile_any<bfloat16>(pb, batch, begin, end, scratch);
    default: return forward_tile_any<float>(pb, batch, begin, end, scratch);
  }
}

void backward_slice(const m2f::Problem& pb, int64_t batch, int64_t head, int64_t level, void* scratch) {
  switch (pb.dtype) {
    case m2f::kFloat64: return backward_slice_of<double>(pb, batch, head, level, scratch);
    case m2f::kBFloat16: return backward_slice_of<bfloat16>(pb, batch, head, level, scratch);
    default: return backward_slice_of<float>(pb, batch, head, level, scratch);
  }
}

void map_moments(const m2f::MapProblem& pb, int64_t batch, int64_t begin, int64_t end, double* out, void* scratch) {
  float* sums = static_cast<float*>(scratch);
  if (pb.dtype == m2f::kBFloat16) return moments_of<bfloat16>(pb, batch, begin, end, out, sums);
  moments_of<float>(pb, batch, begin, end, out, sums);
}

void map_affine(const m2f::MapProblem& pb, int64_t batch, int64_t begin, int64_t end) {
  if (pb.dtype == m2f::kBFloat16) return affine_of<bfloat16>(pb, batch, begin, end);
  affine_of<float>(pb, batch, begin, end);
}

void map_add_resized(const m2f::MapProblem& pb, int64_t batch, int64_t y, void* scratch) {
  float* blended = static_cast<float*>(scratch);
  if (pb.dtype == m2f::kBFloat16) return add_resized_row<bfloat16>(pb, batch, y, blended);
  add_resized_row<float>(pb, batch, y, blended);
}

void add_norm_rows(const m2f::AddNormProblem& pb, int64_t begin, int64_t end) {
  if (pb.dtype == m2f::kBFloat16) return add_norm_rows_of<bfloat16>(pb, begin, end);
  add_norm_rows_of<float>(pb, begin, end);
}

void attention(const m2f::AttentionProblem& pb, int64_t batch, int64_t head, int64_t begin, int64_t end,
               void* scratch) {
  if (pb.dtype == m2f::kBFloat16) return attention_of<bfloat16>(pb, batch, head, begin, end, scratch);
  attention_of<float>(pb, batch, head, begin, end, scratch);
}

size_t neighbourhood_scratch(const m2f::NeighbourhoodProblem& pb) {
  NeighbourhoodScratch<double> exact;
  NeighbourhoodScratch<float> single;
  if (pb.dtype == m2f::kFloat64) return NeighbourhoodScratch<double>::layout(pb, nullptr, &exact);
  return NeighbourhoodScratch<float>::layout(pb, nullptr, &single);
}

void neighbourhood_forward(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                           int64_t residue_x, int64_t begin, int64_t end, void* scratch) {
  const auto forward = pb.dtype == m2f::kFloat64    ? neighbourhood_forward_any<double>
                       : pb.dtype == m2f::kBFloat16 ? neighbourhood_forward_any<bfloat16>
                                                    : neighbourhood_forward_any<float>;
  forward(pb, batch, head, residue_y, residue_x, begin, end, scratch);
}

void neighbourhood_backward(const m2f::NeighbourhoodProblem& pb, int64_t batch, int64_t head, int64_t residue_y,
                            void* scratch) {
  const auto backward = pb.dtype == m2f::kFloat64    ? neighbourhood_backward_any<double>
                        : pb.dtype == m2f::kBFloat16 ? neighbourhood_backward_any<bfloat16>
                                                     : neighbourhood_backward_any<float>;
  backward(pb, batch, head, residue_y, scratch);
}

#define M2F_STRING(x) #x
#define M2F_NAME(x) M2F_STRING(x)
#define M2F_JOIN(a, b) a##b
#define M2F_TABLE(x) M2F_JOIN(m2f_kernels_, x)

}  // namespace

extern "C" const m2f::Kernels M2F_TABLE(M2F_KERNELS) = {M2F_NAME(M2F_KERNELS), forward_scratch, backward_scratch,
                                                        forward_tile, backward_slice, winograd_input,
                                                        winograd_gradient, winograd_output, map_moments, map_affine,
                                                        map_add_resized, add_norm_rows, mask_scratch, mask_strip,
                                                        winners_scratch, winners_block, attention_scratch,
                                                        attention, neighbourhood_scratch,
                                                        neighbourhood_forward, neighbourhood_backward};
