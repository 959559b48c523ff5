// Runs independent tasks on several threads without bringing a thread runtime of its own.
//
// The threads are those torch already has: the caller hands over GOMP_parallel of the OpenMP runtime that torch is
// linked with. Linking an OpenMP runtime here could put a second one into the process, and the idle threads of one would
// spin against the working threads of the other. Without that function, and in a forked child, where the parent's
// OpenMP threads do not exist, threads are started for the call and end with it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace m2f {

using GompParallel = void (*)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);
using Task = void (*)(const void* context, int64_t index, void* scratch);

void set_gomp_parallel(GompParallel function);
const char* threading_name();

// Calls task(context, index, scratch) for every index in [0, count), each on some thread with its own scratch of
// 64-byte aligned memory. False when memory was short and tasks are left undone.
bool run_tasks(int64_t count, int threads, size_t scratch_bytes, Task task, const void* context);

}  // namespace m2f
