// C interface of the CPU library as a whole: its version, the instruction set and the threads it uses.
#include "library.h"

#include "parallel.h"

namespace {

constexpr int kAbiVersion = 9;

using m2f::kernels;
using m2f::Kernels;

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

}  // namespace

namespace m2f {

const Kernels* kernels = table_of(2);

}  // namespace m2f

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
