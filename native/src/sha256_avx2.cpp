// Eight SHA-256 messages at once.
#include <immintrin.h>

#include "sha256.h"
#include "sha256_lanes.inc.h"

namespace aos {
namespace {

struct Avx2 {
  using T = __m256i;
  static constexpr size_t lanes = 8;
  static T load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(uint32_t* p, T x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static T all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static T add(T a, T b) { return _mm256_add_epi32(a, b); }
  static T xor3(T a, T b, T c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static T choice(T e, T f, T g) { return _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g))); }
  static T majority(T a, T b, T c) {
    return _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)));
  }
  template <int n>
  static T rotated(T x) { return _mm256_or_si256(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - n)); }
  template <int n>
  static T shifted(T x) { return _mm256_srli_epi32(x, n); }

  // Word i of every lane's block, made of big-endian bytes: two transpositions of 8 by 8.
  static void words(const uint8_t* const* blocks, size_t at, T* w) {
    const T big_endian = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll));
    for (size_t half = 0; half < 2; ++half, w += 8) {
      T r[8], t[8];
      for (size_t i = 0; i < 8; ++i)
        r[i] = _mm256_shuffle_epi8(load(reinterpret_cast<const uint32_t*>(blocks[i] + at + 32 * half)), big_endian);
      for (size_t i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
      }
      for (size_t i = 0; i < 8; i += 4)
        for (size_t j = 0; j < 2; ++j) {
          r[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + 2 + j]);
          r[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
      for (size_t j = 0; j < 4; ++j) {
        w[j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x20);
        w[4 + j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x31);
      }
    }
  }
};

}  // namespace

void compress_8_with_avx2(uint32_t* states, const uint8_t* const* blocks, size_t count) {
  compress_lanes<Avx2>(states, blocks, count);
}

}  // namespace aos
