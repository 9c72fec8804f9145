// The compression function with x86's SHA instructions.
#include <immintrin.h>

#include "sha256.h"
#include "sha256_rounds.h"

namespace aos {
namespace {

// `streams` messages block by block, side by side.
template <int streams>
inline void compress(uint32_t* const* states, const uint8_t* const* data, size_t count) {
  __m128i abef[streams], cdgh[streams];
  const uint8_t* blocks[streams];
  for (int s = 0; s < streams; ++s) {
    // The instructions want the state as (a, b, e, f) and (c, d, g, h), highest word first.
    const __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(states[s])), 0xb1);
    const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(states[s] + 4)), 0x1b);
    abef[s] = _mm_alignr_epi8(abcd, efgh, 8), cdgh[s] = _mm_blend_epi16(efgh, abcd, 0xf0);
    blocks[s] = data[s];
  }
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
  for (; count > 0; --count) {
    __m128i abef_before[streams], cdgh_before[streams], w[streams][4];
    for (int s = 0; s < streams; ++s) {
      abef_before[s] = abef[s], cdgh_before[s] = cdgh[s];
      for (int i = 0; i < 4; ++i)
        w[s][i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks[s] + 16 * i)), big_endian);
      blocks[s] += 64;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i*>(kSha256Round + 4 * i));
#pragma GCC unroll 2
      for (int s = 0; s < streams; ++s) {
        const __m128i message = _mm_add_epi32(w[s][i & 3], k);
        cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], message);
        abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32(message, 0x0e));
        if (i < 12) {
          // w[i & 3] becomes the words of round 4(i + 4).
          const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[s][i & 3], w[s][(i + 1) & 3]),
                                            _mm_alignr_epi8(w[s][(i + 3) & 3], w[s][(i + 2) & 3], 4));
          w[s][i & 3] = _mm_sha256msg2_epu32(sum, w[s][(i + 3) & 3]);
        }
      }
    }
    for (int s = 0; s < streams; ++s) {
      abef[s] = _mm_add_epi32(abef[s], abef_before[s]);
      cdgh[s] = _mm_add_epi32(cdgh[s], cdgh_before[s]);
    }
  }
  for (int s = 0; s < streams; ++s) {
    const __m128i feba = _mm_shuffle_epi32(abef[s], 0x1b), dchg = _mm_shuffle_epi32(cdgh[s], 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states[s]), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states[s] + 4), _mm_alignr_epi8(dchg, feba, 8));
  }
}

}  // namespace

void compress_with_sha_instructions(uint32_t* state, const uint8_t* blocks, size_t count) {
  compress<1>(&state, &blocks, count);
}

void compress_2_with_sha_instructions(uint32_t* states, const uint8_t* const* blocks, size_t count) {
  uint32_t own[2][8];
  for (int i = 0; i < 8; ++i) own[0][i] = states[2 * i], own[1][i] = states[2 * i + 1];
  uint32_t* const each[2] = {own[0], own[1]};
  compress<2>(each, blocks, count);
  for (int i = 0; i < 8; ++i) states[2 * i] = own[0][i], states[2 * i + 1] = own[1][i];
}

}  // namespace aos
