// AVX-512 with VNNI: 16 rows in one register. The vector twins are in simd.inc.h.
#include <immintrin.h>

#include "packed.h"

namespace aos {
namespace {

using F = __m512;
using I = __m512i;
using Bytes = __m512i;
constexpr size_t kUnit = 16;
constexpr size_t kAhead = 4096;  // bytes that decoding prefetches ahead

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
// x > low ? x : low, lane by lane: what the scalar definition writes, NaN included.
inline F at_least(F x, F low) { return _mm512_max_ps(x, low); }
inline F at_most(F x, F high) { return _mm512_min_ps(x, high); }
inline F magnitude(F x) { return _mm512_and_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff))); }
inline F negative(F x) { return _mm512_xor_ps(x, _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN))); }
inline F largest_pattern(F a, F b) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store_half(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bfloat(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
// p times 2^n, n in the low bits of `shifted` (exp, rule 7).
inline F add_exponent(F p, F shifted) {
  const I n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(n, 23)));
}

inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes low_half(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Bytes high_half(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
template <int bit>
inline Bytes bit_to_16(Bytes v) {
  const Bytes moved = bit < 4 ? _mm512_slli_epi16(v, bit < 4 ? 4 - bit : 0) : _mm512_srli_epi16(v, bit < 4 ? 0 : bit - 4);
  return _mm512_and_si512(moved, _mm512_set1_epi8(16));
}
template <int pair>
inline Bytes pair_to_16(Bytes v) {
  const Bytes moved = pair < 2 ? _mm512_slli_epi16(v, pair < 2 ? 4 - 2 * pair : 0) : _mm512_srli_epi16(v, pair < 2 ? 0 : 2 * pair - 4);
  return _mm512_and_si512(moved, _mm512_set1_epi8(48));
}
template <bool is_signed>
inline F bytes_to_float(const uint8_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(is_signed ? _mm512_cvtepi8_epi32(v) : _mm512_cvtepu8_epi32(v));
}

// Σ w·q over 4 · n columns, plus `correction`, for every row. With 8 bits the weights are signed: 128 is added to them
// here and its share is in the correction.
template <int bits, size_t n, bool corrected>
inline I isum(const Bytes* w, const int32_t* q, int32_t correction) {
  I sum = corrected ? _mm512_set1_epi32(correction) : _mm512_setzero_si512();
  for (size_t j = 0; j < n; ++j) {
    const Bytes v = bits == 8 ? _mm512_xor_si512(w[j], _mm512_set1_epi8(-128)) : w[j];
    sum = _mm512_dpbusd_epi32(sum, v, _mm512_set1_epi32(q[j]));
  }
  return sum;
}
inline I isum_corrected(const Bytes* w, const int32_t* q, const int32_t* correction) {
  return isum<4, 8, true>(w, q, *correction);
}

// Rule 1.
void quantise(const float* x, size_t n, uint8_t* tile, size_t width, size_t slot) {
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, tile += kTileBlockBytes * width) {
    const F x0 = load(x), x1 = load(x + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(magnitude(x0), magnitude(x1)));
    float d = 0.0f, r = 0.0f;
    if (largest >= 0x1p-100f) {
      d = largest / 127.0f;
      r = 127.0f / largest;
    }
    const I q0 = _mm512_cvtps_epi32(mul(x0, set1(r))), q1 = _mm512_cvtps_epi32(mul(x1, set1(r)));
    uint8_t* q = tile + kBlock * slot;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(q0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtepi32_epi8(q1));
    const int32_t first = -8 * _mm512_reduce_add_epi32(q0), sum = first - 8 * _mm512_reduce_add_epi32(q1);
    std::memcpy(tile + kTileSums * width + 4 * slot, &sum, 4);
    std::memcpy(tile + kTileHalfSums * width + 4 * slot, &first, 4);
    std::memcpy(tile + kTileScales * width + 4 * slot, &d, 4);
  }
}

#include "simd.inc.h"

}  // namespace

constinit const Kernels kAvx512 = table("avx512");

}  // namespace aos
