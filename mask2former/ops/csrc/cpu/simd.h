// Fixed-width vectors through the compiler's vector extension (GCC and Clang), so that one source serves every
// instruction set. Everything is inside an anonymous namespace: each object file must keep its own copy, or the linker
// could hand AVX-512 code to a machine without it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define M2F_INLINE inline __attribute__((always_inline))

namespace {

struct bfloat16 {
  uint16_t bits;
};

// The type in which elements of T are computed and accumulated.
template <class T>
struct Compute {
  using type = T;
};
template <>
struct Compute<bfloat16> {
  using type = float;
};

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

// Lanes of one register for W channels of type T.
template <class T, int W>
constexpr int lanes() {
  constexpr int width = M2F_VECTOR_BYTES / static_cast<int>(sizeof(T));
  return W < width ? W : width;
}

template <int N, class T>
M2F_INLINE Vec<typename Compute<T>::type, N> load(const T* from) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    Vec<uint16_t, N> half;
    memcpy(&half, from, sizeof(half));
    return reinterpret_cast<Vec<float, N>>(__builtin_convertvector(half, Vec<uint32_t, N>) << 16);
  } else {
    Vec<T, N> out;
    memcpy(&out, from, sizeof(out));
    return out;
  }
}

template <int N>
M2F_INLINE Vec<uint16_t, N> to_bfloat16(Vec<float, N> v) {
  typedef Vec<uint32_t, N> Bits;
  const Bits bits = reinterpret_cast<Bits>(v), quiet = Bits{} + 0x7fc0u;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Vec<uint16_t, N>);
}

template <int N, class T>
M2F_INLINE void store(T* to, Vec<typename Compute<T>::type, N> v) {
  if constexpr (sizeof(T) == sizeof(uint16_t)) {
    const Vec<uint16_t, N> half = to_bfloat16<N>(v);
    memcpy(to, &half, sizeof(half));
  } else {
    memcpy(to, &v, sizeof(v));
  }
}

M2F_INLINE float read(const float* p) { return *p; }
M2F_INLINE double read(const double* p) { return *p; }
M2F_INLINE float read(const bfloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float out;
  memcpy(&out, &bits, sizeof(out));
  return out;
}

M2F_INLINE void write(float* p, float v) { *p = v; }
M2F_INLINE void write(double* p, double v) { *p = v; }
M2F_INLINE void write(bfloat16* p, float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  p->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x for finite x <= 0, to about two units in the last place; far below zero it is zero.
template <int N>
M2F_INLINE Vec<float, N> exp_of(Vec<float, N> x) {
  typedef Vec<int32_t, N> Int;
  const Vec<float, N> lowest = Vec<float, N>{} - 87.0f;
  const Int is_tiny = x < lowest;
  x = is_tiny ? lowest : x;
  const Vec<float, N> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: what is left of a float is an integer
  const Vec<float, N> whole = shifted - 12582912.0f;
  const Vec<float, N> rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  // Taylor's series on |rest| <= ln(2) / 2, by Horner.
  Vec<float, N> sum = Vec<float, N>{} + 1.0f / 5040;
  sum = sum * rest + 1.0f / 720;
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  const Int exponent = (__builtin_convertvector(whole, Int) + 127) << 23;
  const Vec<float, N> zero = {};
  return is_tiny ? zero : sum * reinterpret_cast<Vec<float, N>>(exponent);
}
template <int N>
M2F_INLINE Vec<double, N> exp_of(Vec<double, N> x) {
  for (int i = 0; i < N; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Adds upper to lower half until four lanes are left.
template <class T, int N>
struct Fold {
  static M2F_INLINE Vec<T, 4> run(Vec<T, N> v) {
    Vec<T, N / 2> half[2];
    memcpy(half, &v, sizeof(v));
    return Fold<T, N / 2>::run(half[0] + half[1]);
  }
};
template <class T>
struct Fold<T, 4> {
  static M2F_INLINE Vec<T, 4> run(Vec<T, 4> v) { return v; }
};
// (Two float64 lanes make a 16-byte register: widened with zeros.)
template <class T>
struct Fold<T, 2> {
  static M2F_INLINE Vec<T, 4> run(Vec<T, 2> v) { return Vec<T, 4>{v[0], v[1], T(0), T(0)}; }
};

// Hands out aligned pieces of a thread's scratch; with a null base it only counts bytes.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* out = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return out;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace
