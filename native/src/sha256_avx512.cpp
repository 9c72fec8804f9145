// Sixteen SHA-256 messages at once.
#include <immintrin.h>

#include "sha256.h"
#include "sha256_lanes.inc.h"

namespace aos {
namespace {

struct Avx512 {
  using T = __m512i;
  static constexpr size_t lanes = 16;
  static T load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint32_t* p, T x) { _mm512_storeu_si512(p, x); }
  static T all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static T add(T a, T b) { return _mm512_add_epi32(a, b); }
  static T xor3(T a, T b, T c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
  static T choice(T e, T f, T g) { return _mm512_ternarylogic_epi32(e, f, g, 0xca); }
  static T majority(T a, T b, T c) { return _mm512_ternarylogic_epi32(a, b, c, 0xe8); }
  template <int n>
  static T rotated(T x) { return _mm512_ror_epi32(x, n); }
  template <int n>
  static T shifted(T x) { return _mm512_srli_epi32(x, n); }

  // Word i of every lane's block, made of big-endian bytes: a transposition of 16 by 16.
  static void words(const uint8_t* const* blocks, size_t at, T* w) {
    const T big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll));
    T r[16], t[16];
    for (size_t i = 0; i < 16; ++i) r[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(blocks[i] + at), big_endian);
    for (size_t i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    // r[4k + j]: of each quarter q, word 4q + j of lanes 4k … 4k + 3.
    for (size_t i = 0; i < 16; i += 4)
      for (size_t j = 0; j < 2; ++j) {
        r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
        r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
      }
    for (size_t j = 0; j < 4; ++j) {
      const T low01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44), low23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
      const T high01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee), high23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
      w[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
      w[4 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
      w[8 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
      w[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
  }
};

}  // namespace

void compress_16_with_avx512(uint32_t* states, const uint8_t* const* blocks, size_t count) {
  compress_lanes<Avx512>(states, blocks, count);
}

}  // namespace aos
