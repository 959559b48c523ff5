// C interface of attention. Arguments are checked by the caller; see AttentionProblem in problem.h for layouts.
#include "library.h"
#include "parallel.h"

namespace {

using m2f::AttentionProblem;

constexpr int64_t kLeastQueries = 48;  // of a task, each of which reads all tokens of its head

int64_t blocks_of(const AttentionProblem& pb) { return (pb.queries + pb.query_block - 1) / pb.query_block; }

void attention_task(const void* context, int64_t index, void* scratch) {
  const AttentionProblem& pb = *static_cast<const AttentionProblem*>(context);
  const int64_t block = index % blocks_of(pb), head = index / blocks_of(pb);
  const int64_t begin = block * pb.query_block, end = begin + pb.query_block;
  m2f::kernels->attention(pb, head / pb.heads, head % pb.heads, begin, end < pb.queries ? end : pb.queries, scratch);
}

// As many tasks as keep the threads busy; what a query sees does not depend on which are in its task.
int64_t query_block_of(const AttentionProblem& pb, int threads) {
  const int64_t heads = pb.batch * pb.heads, wanted = (2 * static_cast<int64_t>(threads) + heads - 1) / heads;
  const int64_t block = (pb.queries + wanted - 1) / wanted;
  return block < kLeastQueries ? kLeastQueries : block;
}

}  // namespace

// Returns 0, or 1 when memory ran out.
M2F_EXPORT int m2f_attention(int dtype, const void* query, const void* key, const void* value, const uint8_t* seen,
                             float* output, float scale, int64_t batch, int64_t heads, int64_t channels,
                             int64_t queries, int64_t tokens, int threads) {
  AttentionProblem pb = {dtype, query, key, value, seen, output, scale, batch, heads, channels, queries, tokens, 0};
  pb.query_block = query_block_of(pb, threads);
  const size_t scratch = m2f::kernels->attention_scratch(pb);
  const bool done = m2f::run_tasks(batch * heads * blocks_of(pb), threads, scratch, attention_task, &pb);
  return done ? 0 : m2f::kOutOfMemory;
}
