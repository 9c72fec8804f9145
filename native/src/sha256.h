// SHA-256 (FIPS 180-4) and the tree of RFC 9162 over it.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace aos {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void update(const void* data, size_t size);
  Digest finish();

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t buffer_[64];
  size_t buffered_ = 0;
  uint64_t total_ = 0;
};

// Many messages of one length: *out[i] = SHA-256(prefix ‖ data[i]), `size` bytes each, side by side where the processor can.
// A digest may overwrite data of its own message or of one before it.
void sha256_many(const void* prefix, size_t prefix_size, const uint8_t* const* data, size_t size, size_t count, Digest* const* out);

// A way to compute several messages at once: states[word][lane], `count` blocks from blocks[lane] on.
struct Sha256Lanes {
  const char* name;
  size_t lanes;  // 1, 2, 8 or 16
  size_t least;  // worth it from so many messages on
  void (*compress)(uint32_t* states, const uint8_t* const* blocks, size_t count);
};

// What this processor has, the best first; the last is one message at a time, by the definition.
const std::vector<Sha256Lanes>& sha256_lanes();
// One of them for all messages, whatever their number: for tests.
void sha256_many(const Sha256Lanes& way, const void* prefix, size_t prefix_size, const uint8_t* const* data, size_t size,
                 size_t count, Digest* const* out);

// The root over leaf hashes; there must be one at least. The second form overwrites them.
Digest tree_root(std::vector<Digest> level);
Digest tree_root(Digest* level, size_t count);
// Roots of `trees` trees of `count` leaves, one behind the other; overwrites them. Root i is left in level[i * count].
void tree_roots(Digest* level, size_t trees, size_t count);

#if defined(AOS_AVX)
// sha256_ni.cpp; only where has_sha_instructions().
void compress_with_sha_instructions(uint32_t* state, const uint8_t* blocks, size_t count);
// Two independent streams: the instructions' latency is hidden.
void compress_2_with_sha_instructions(uint32_t* states, const uint8_t* const* blocks, size_t count);
void compress_8_with_avx2(uint32_t* states, const uint8_t* const* blocks, size_t count);
void compress_16_with_avx512(uint32_t* states, const uint8_t* const* blocks, size_t count);
#endif

}  // namespace aos
