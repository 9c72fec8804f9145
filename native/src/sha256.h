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

// Digests of prefix ‖ a and prefix ‖ b, `size` bytes each behind a prefix below 64, computed side by side.
void sha256_pair(const void* prefix, size_t prefix_size, const void* a, const void* b, size_t size, Digest* out);

// The root over leaf hashes; there must be one at least. The second form overwrites them.
Digest tree_root(std::vector<Digest> level);
Digest tree_root(Digest* level, size_t count);

#if defined(AOS_AVX)
// sha256_ni.cpp; only where has_sha_instructions().
void compress_with_sha_instructions(uint32_t* state, const uint8_t* blocks, size_t count);
// Two independent streams: the instructions' latency is hidden.
void compress_pair_with_sha_instructions(uint32_t* const* states, const uint8_t* const* blocks, size_t count);
#endif

}  // namespace aos
