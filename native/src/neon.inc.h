// NEON: 4 rows in one register. Included by neon.cpp and neon_dot.cpp, which name the table and say whether the
// processor's dot product (sdot) may be used. The vector twins are in simd.inc.h.
#include <arm_neon.h>

#include "packed.h"

namespace aos {
namespace {

using F = float32x4_t;
using I = int32x4_t;
using Bytes = int8x16_t;
constexpr size_t kUnit = 4;
constexpr size_t kAhead = 2048;  // bytes that decoding prefetches ahead

inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline F set1(float x) { return vdupq_n_f32(x); }
inline F zero() { return vdupq_n_f32(0.0f); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F div(F a, F b) { return vdivq_f32(a, b); }
// x > low ? x : low, lane by lane: what the scalar definition writes, NaN included (vmaxq would give NaN).
inline F at_least(F x, F low) { return vbslq_f32(vcgtq_f32(x, low), x, low); }
inline F at_most(F x, F high) { return vbslq_f32(vcltq_f32(x, high), x, high); }
inline F magnitude(F x) { return vabsq_f32(x); }
inline F negative(F x) { return vnegq_f32(x); }
inline F largest_pattern(F a, F b) {
  return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b)));
}
// FPCR is zero for as long as the engine computes: no flush of halves, no alternative half format.
inline F load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void store_half(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline F load_bfloat(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline float root(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
inline F to_float(I v) { return vcvtq_f32_s32(v); }
// p times 2^n, n in the low bits of `shifted` (exp, rule 7).
inline F add_exponent(F p, F shifted) {
  const I n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(0x4b400000));
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(n, 23)));
}

inline Bytes load_bytes(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline Bytes low_half(Bytes v) { return vandq_s8(v, vdupq_n_s8(15)); }
inline Bytes high_half(Bytes v) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)); }
inline Bytes either(Bytes a, Bytes b) { return vorrq_s8(a, b); }
template <int bit>
inline Bytes bit_to_16(Bytes v) {
  return vandq_s8(vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(v), vdupq_n_s8(4 - bit))), vdupq_n_s8(16));
}
template <int pair>
inline Bytes pair_to_16(Bytes v) {
  return vandq_s8(vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(v), vdupq_n_s8(4 - 2 * pair))), vdupq_n_s8(48));
}
template <bool is_signed>
inline F bytes_to_float(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  const uint8x8_t v = vreinterpret_u8_u32(vdup_n_u32(word));
  if constexpr (is_signed) return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(v)))));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v))));
}

// Adds Σ of four neighbouring products to each lane.
inline I dot(I sum, Bytes w, Bytes q) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, w, q);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(q)), high = vmull_s8(vget_high_s8(w), vget_high_s8(q));
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

// Σ w·q over 4 · n columns for every row. With fewer than 8 bits, `correction` is what the weights' offset takes; 8-bit
// weights are signed, their correction belongs to instruction sets that shift them and is left out.
template <int bits, size_t n, bool corrected>
inline I isum(const Bytes* w, const int32_t* q, int32_t correction) {
  I sum = vdupq_n_s32(corrected && bits != 8 ? correction : 0);
  for (size_t j = 0; j < n; ++j) sum = dot(sum, w[j], vreinterpretq_s8_s32(vdupq_n_s32(q[j])));
  return sum;
}
inline I isum_corrected(const Bytes* w, const int32_t* q, const int32_t* correction) {
  return isum<4, 8, true>(w, q, *correction);
}

// Rule 1.
void quantise(const float* x, size_t n, uint8_t* tile, size_t width, size_t slot) {
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, tile += kTileBlockBytes * width) {
    F v[8], most = zero();
    for (size_t i = 0; i < 8; ++i) {
      v[i] = load(x + 4 * i);
      most = at_least(magnitude(v[i]), most);
    }
    const float largest = vmaxvq_f32(most);
    float d = 0.0f, r = 0.0f;
    if (largest >= 0x1p-100f) {
      d = largest / 127.0f;
      r = 127.0f / largest;
    }
    I sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    auto* q = reinterpret_cast<int8_t*>(tile) + kBlock * slot;
    for (size_t i = 0; i < 8; i += 2) {
      const I a = vcvtnq_s32_f32(mul(v[i], set1(r))), b2 = vcvtnq_s32_f32(mul(v[i + 1], set1(r)));
      vst1_s8(q + 4 * i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b2))));
      sums[i / 4] = vaddq_s32(sums[i / 4], vaddq_s32(a, b2));
    }
    const int32_t first = -8 * vaddvq_s32(sums[0]), sum = first - 8 * vaddvq_s32(sums[1]);
    std::memcpy(tile + kTileSums * width + 4 * slot, &sum, 4);
    std::memcpy(tile + kTileHalfSums * width + 4 * slot, &first, 4);
    std::memcpy(tile + kTileScales * width + 4 * slot, &d, 4);
  }
}

#include "simd.inc.h"

}  // namespace
}  // namespace aos
