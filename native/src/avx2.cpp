// AVX2 with F16C: 8 rows in one register. The vector twins are in simd.inc.h.
#include <immintrin.h>

#include "packed.h"

namespace aos {
namespace {

using F = __m256;
using I = __m256i;
using Bytes = __m256i;
constexpr size_t kUnit = 8;
constexpr size_t kAhead = 4096;  // bytes that decoding prefetches ahead

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F zero() { return _mm256_setzero_ps(); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
// x > low ? x : low, lane by lane: what the scalar definition writes, NaN included.
inline F at_least(F x, F low) { return _mm256_max_ps(x, low); }
inline F at_most(F x, F high) { return _mm256_min_ps(x, high); }
inline F magnitude(F x) { return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
inline F negative(F x) { return _mm256_xor_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN))); }
inline F largest_pattern(F a, F b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store_half(uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bfloat(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
// p times 2^n, n in the low bits of `shifted` (exp, rule 7).
inline F add_exponent(F p, F shifted) {
  const I n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4b400000));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
}

inline Bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bytes low_half(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Bytes high_half(Bytes v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
inline Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
template <int bit>
inline Bytes bit_to_16(Bytes v) {
  const Bytes moved = bit < 4 ? _mm256_slli_epi16(v, bit < 4 ? 4 - bit : 0) : _mm256_srli_epi16(v, bit < 4 ? 0 : bit - 4);
  return _mm256_and_si256(moved, _mm256_set1_epi8(16));
}
template <int pair>
inline Bytes pair_to_16(Bytes v) {
  const Bytes moved = pair < 2 ? _mm256_slli_epi16(v, pair < 2 ? 4 - 2 * pair : 0) : _mm256_srli_epi16(v, pair < 2 ? 0 : 2 * pair - 4);
  return _mm256_and_si256(moved, _mm256_set1_epi8(48));
}
template <bool is_signed>
inline F bytes_to_float(const uint8_t* p) {
  const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(is_signed ? _mm256_cvtepi8_epi32(v) : _mm256_cvtepu8_epi32(v));
}

// Σ w·q over 4 · n columns, plus what corrects the weights' offset, for every row. maddubs adds two products into 16
// bits: with |q| <= 127, 4-bit weights leave room for 8 such sums (15·127·2·8 = 30,480), 5-bit for 4, 6-bit for 2.
template <int bits, size_t n, bool corrected>
inline I isum(const Bytes* w, const int32_t* q, int32_t correction) {
  const I ones = _mm256_set1_epi16(1);
  if constexpr (bits == 8) {
    // Signed weights: |w| <= 128 unsigned, the sign moves to q (128·127·2 = 32,512). There is no offset to correct.
    I sum = _mm256_setzero_si256();
    for (size_t j = 0; j < n; ++j) {
      const I pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(_mm256_set1_epi32(q[j]), w[j]));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return sum;
  } else {
    constexpr size_t room = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    I sum = corrected ? _mm256_set1_epi32(correction) : _mm256_setzero_si256();
    for (size_t j = 0; j < n; j += room) {
      I pairs = _mm256_maddubs_epi16(w[j], _mm256_set1_epi32(q[j]));
      for (size_t k = 1; k < room && j + k < n; ++k)
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[j + k], _mm256_set1_epi32(q[j + k])));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return sum;
  }
}
inline I isum_corrected(const Bytes* w, const int32_t* q, const int32_t* correction) {
  return isum<4, 8, true>(w, q, *correction);
}

inline float reduce_max(F v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

inline int32_t reduce_add(I v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

// Rule 1.
void quantise(const float* x, size_t n, uint8_t* tile, size_t width, size_t slot) {
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, tile += kTileBlockBytes * width) {
    F v[4];
    for (size_t i = 0; i < 4; ++i) v[i] = load(x + 8 * i);
    const float largest = reduce_max(_mm256_max_ps(_mm256_max_ps(magnitude(v[0]), magnitude(v[1])),
                                                   _mm256_max_ps(magnitude(v[2]), magnitude(v[3]))));
    float d = 0.0f, r = 0.0f;
    if (largest >= 0x1p-100f) {
      d = largest / 127.0f;
      r = 127.0f / largest;
    }
    I q[4];
    for (size_t i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(mul(v[i], set1(r)));
    const I words01 = _mm256_packs_epi32(q[0], q[1]), words23 = _mm256_packs_epi32(q[2], q[3]);
    const I bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words01, words23), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile + kBlock * slot), bytes);
    const int32_t first = -8 * reduce_add(_mm256_add_epi32(q[0], q[1]));
    const int32_t sum = first - 8 * reduce_add(_mm256_add_epi32(q[2], q[3]));
    std::memcpy(tile + kTileSums * width + 4 * slot, &sum, 4);
    std::memcpy(tile + kTileHalfSums * width + 4 * slot, &first, 4);
    std::memcpy(tile + kTileScales * width + 4 * slot, &d, 4);
  }
}

#include "simd.inc.h"

}  // namespace

constinit const Kernels kAvx2 = table("avx2");

}  // namespace aos
