// C interface of dilated neighbourhood attention (arXiv:2209.15001), forward and backward. Arguments are checked by the
// caller; see NeighbourhoodProblem in problem.h for layouts.
#include <initializer_list>

#include "library.h"
#include "parallel.h"

namespace {

using m2f::kernels;
using m2f::NeighbourhoodProblem;

constexpr int64_t kRowBlock = 16;  // query rows of a task: enough to share what is packed, which a second cache holds
// Below this many multiply-adds of the forward pass waking other threads costs more than it saves.
constexpr int64_t kSerialWork = 200000;

struct Call {
  const NeighbourhoodProblem& problem;
  int64_t blocks;  // of query rows of a residue class
};

void forward_task(const void* context, int64_t index, void* scratch) {
  const Call& call = *static_cast<const Call*>(context);
  const NeighbourhoodProblem& pb = call.problem;
  const int64_t block = index % call.blocks, residues = index / call.blocks;
  const int64_t residue_x = residues % pb.dilation, residue_y = residues / pb.dilation % pb.dilation;
  const int64_t head = residues / pb.dilation / pb.dilation;
  kernels->neighbourhood_forward(pb, head / pb.heads, head % pb.heads, residue_y, residue_x, block * pb.row_block,
                                 (block + 1) * pb.row_block, scratch);
}

void backward_task(const void* context, int64_t index, void* scratch) {
  const NeighbourhoodProblem& pb = static_cast<const Call*>(context)->problem;
  const int64_t head = index / pb.dilation;
  kernels->neighbourhood_backward(pb, head / pb.heads, head % pb.heads, index % pb.dilation, scratch);
}

// sizes: B, M, D, h, w, H, W, k, dilation, then the strides of query, key and value over B, rows, columns and M in
// elements.
void read_sizes(const int64_t* sizes, double scale, NeighbourhoodProblem* pb) {
  int64_t* const targets[] = {&pb->batch,  &pb->heads, &pb->channels, &pb->query_height, &pb->query_width,
                              &pb->height, &pb->width, &pb->kernel,   &pb->dilation};
  for (int64_t* target : targets) *target = *sizes++;
  for (int64_t* strides : {pb->query_strides, pb->key_strides, pb->value_strides}) {
    for (int i = 0; i < 4; ++i) strides[i] = *sizes++;
  }
  pb->scale = scale;
  pb->row_block = kRowBlock;
}

int threads_for(const NeighbourhoodProblem& pb, int threads) {
  const int64_t queries = pb.batch * pb.query_height * pb.query_width * pb.heads;
  return queries * pb.channels * pb.kernel * pb.kernel * 2 < kSerialWork ? 1 : threads;
}

}  // namespace

// Both return 0, or 1 when memory ran out.
M2F_EXPORT int m2f_neighbourhood_forward(int dtype, const void* query, const void* key, const void* value,
                                         const void* bias, void* output, const int64_t* sizes, double scale,
                                         int threads) {
  NeighbourhoodProblem pb = {};
  pb.dtype = dtype, pb.query = query, pb.key = key, pb.value = value, pb.bias = bias, pb.output = output;
  read_sizes(sizes, scale, &pb);
  const int64_t class_rows = (pb.query_height + pb.dilation - 1) / pb.dilation;
  const Call call = {pb, (class_rows + pb.row_block - 1) / pb.row_block};
  const int64_t count = pb.batch * pb.heads * pb.dilation * pb.dilation * call.blocks;
  const size_t scratch = kernels->neighbourhood_scratch(pb);
  return m2f::run_tasks(count, threads_for(pb, threads), scratch, forward_task, &call) ? 0 : m2f::kOutOfMemory;
}

// grad_bias (B * dilation, M, 2 k - 1, 2 k - 1) is to be summed by the caller.
M2F_EXPORT int m2f_neighbourhood_backward(int dtype, const void* grad_output, const void* query, const void* key,
                                          const void* value, const void* bias, void* grad_query, void* grad_key,
                                          void* grad_value, void* grad_bias, const int64_t* sizes, double scale,
                                          int threads) {
  NeighbourhoodProblem pb = {};
  pb.dtype = dtype, pb.query = query, pb.key = key, pb.value = value, pb.bias = bias, pb.grad_output = grad_output;
  pb.grad_query = grad_query, pb.grad_key = grad_key, pb.grad_value = grad_value, pb.grad_bias = grad_bias;
  read_sizes(sizes, scale, &pb);
  const Call call = {pb, 0};
  const size_t scratch = kernels->neighbourhood_scratch(pb);
  const int64_t count = pb.batch * pb.heads * pb.dilation;
  return m2f::run_tasks(count, threads_for(pb, threads), scratch, backward_task, &call) ? 0 : m2f::kOutOfMemory;
}
