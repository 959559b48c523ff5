#include "parallel.h"

#include <pthread.h>
#include <stdlib.h>

#include <atomic>

namespace m2f {
namespace {

std::atomic<GompParallel> gomp_parallel{nullptr};

void forget_parents_threads() { gomp_parallel.store(nullptr); }

const int fork_handler = pthread_atfork(nullptr, nullptr, forget_parents_threads);

struct Job {
  int64_t count;
  size_t scratch_bytes;
  Task task;
  const void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
};

void work(void* data) {
  Job* job = static_cast<Job*>(data);
  if (job->next.load() >= job->count) return;
  void* scratch = nullptr;
  if (posix_memalign(&scratch, 64, job->scratch_bytes + 64) != 0) return;  // the other threads take over
  int64_t mine = 0;
  for (int64_t index = job->next.fetch_add(1); index < job->count; index = job->next.fetch_add(1), ++mine) {
    job->task(job->context, index, scratch);
  }
  job->done.fetch_add(mine);
  free(scratch);
}

void* work_in_thread(void* data) {
  work(data);
  return nullptr;
}

void run_on_new_threads(Job* job, int threads) {
  constexpr int kMaxThreads = 256;
  pthread_t started[kMaxThreads];
  int64_t wanted = threads < job->count ? threads : job->count;
  if (wanted > kMaxThreads) wanted = kMaxThreads;
  int num_started = 0;
  while (num_started + 1 < wanted && pthread_create(&started[num_started], nullptr, work_in_thread, job) == 0) {
    ++num_started;
  }
  work(job);
  for (int i = 0; i < num_started; ++i) pthread_join(started[i], nullptr);
}

}  // namespace

void set_gomp_parallel(GompParallel function) {
  gomp_parallel.store(fork_handler == 0 ? function : nullptr);
}

const char* threading_name() { return gomp_parallel.load() ? "torch's OpenMP threads" : "own threads"; }

bool run_tasks(int64_t count, int threads, size_t scratch_bytes, Task task, const void* context) {
  Job job;
  job.count = count;
  job.scratch_bytes = scratch_bytes;
  job.task = task;
  job.context = context;
  const GompParallel parallel = gomp_parallel.load();
  if (threads <= 1 || count <= 1) {
    work(&job);
  } else if (parallel) {
    // Always torch's own number: OpenMP ends threads when a region asks for fewer and restarts them for the next.
    parallel(work, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_on_new_threads(&job, threads);
  }
  return job.done.load() == count;
}

}  // namespace m2f
