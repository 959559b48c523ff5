#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float out;
  memcpy(&out, &wide, sizeof(out));
  return out;
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  uint32_t wide;
  memcpy(&wide, &v, sizeof(wide));
  return {static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
}
