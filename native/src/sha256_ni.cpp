// The compression function with x86's SHA instructions.
#include <immintrin.h>

#include "sha256.h"

namespace aos {
namespace {

alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

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
      const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * i));
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

void compress_pair_with_sha_instructions(uint32_t* const* states, const uint8_t* const* blocks, size_t count) {
  compress<2>(states, blocks, count);
}

}  // namespace aos
