// The compression function with a message in every 32-bit lane of a register. `V` gives the register and its operations.
// Included by a translation unit per instruction set.
#include <cstddef>
#include <cstdint>

#include "sha256_rounds.h"

namespace aos {
namespace {

// states[word][lane]; `count` blocks of every lane's message.
template <class V>
inline void compress_lanes(uint32_t* states, const uint8_t* const* blocks, size_t count) {
  using T = typename V::T;
  T state[8];
  for (size_t i = 0; i < 8; ++i) state[i] = V::load(states + i * V::lanes);
  for (size_t block = 0; block < count; ++block) {
    T w[16], s[8];
    V::words(blocks, 64 * block, w);
    for (size_t i = 0; i < 8; ++i) s[i] = state[i];
#pragma GCC unroll 64
    for (size_t i = 0; i < 64; ++i) {
      // Instead of moving a to b, b to c, …, the names move.
      const T a = s[(64 - i) & 7], b = s[(65 - i) & 7], c = s[(66 - i) & 7];
      const T e = s[(68 - i) & 7], f = s[(69 - i) & 7], g = s[(70 - i) & 7];
      T &d = s[(67 - i) & 7], &h = s[(71 - i) & 7];
      if (i >= 16) {
        const T x = w[(i + 1) & 15], y = w[(i + 14) & 15];
        const T s0 = V::xor3(V::template rotated<7>(x), V::template rotated<18>(x), V::template shifted<3>(x));
        const T s1 = V::xor3(V::template rotated<17>(y), V::template rotated<19>(y), V::template shifted<10>(y));
        w[i & 15] = V::add(V::add(w[i & 15], s0), V::add(w[(i + 9) & 15], s1));
      }
      const T s1 = V::xor3(V::template rotated<6>(e), V::template rotated<11>(e), V::template rotated<25>(e));
      const T s0 = V::xor3(V::template rotated<2>(a), V::template rotated<13>(a), V::template rotated<22>(a));
      const T t1 = V::add(V::add(V::add(h, s1), V::choice(e, f, g)), V::add(w[i & 15], V::all(kSha256Round[i])));
      d = V::add(d, t1);
      h = V::add(t1, V::add(s0, V::majority(a, b, c)));
    }
    for (size_t i = 0; i < 8; ++i) state[i] = V::add(state[i], s[i]);
  }
  for (size_t i = 0; i < 8; ++i) V::store(states + i * V::lanes, state[i]);
}

}  // namespace
}  // namespace aos
