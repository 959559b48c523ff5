// What the entry points of the library share.
#pragma once

#include "problem.h"

#define M2F_EXPORT extern "C" __attribute__((visibility("default")))

namespace m2f {

constexpr int kOutOfMemory = 1;  // what an entry point returns instead of 0

// Those of the instruction set in use.
extern const Kernels* kernels;

}  // namespace m2f
