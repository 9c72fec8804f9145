#include "sha256.h"

#include <cstring>

#include "cpu.h"

namespace aos {
namespace {

constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr uint32_t kInitial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

constexpr uint8_t kNode = 1;  // RFC 9162's prefix

uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

uint32_t big_endian(const uint8_t* p) { return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3]; }

void compress(uint32_t* state, const uint8_t* data, size_t count) {
  for (; count > 0; --count, data += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = big_endian(data + 4 * i);
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
      const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
      const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const uint32_t t2 = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
}

using Compress = void (*)(uint32_t*, const uint8_t*, size_t);

Compress chosen() {
#if defined(AOS_AVX)
  static const Compress function = has_sha_instructions() ? compress_with_sha_instructions : compress;
  return function;
#else
  return compress;
#endif
}

}  // namespace

void Sha256::update(const void* data, size_t size) {
  const auto* p = static_cast<const uint8_t*>(data);
  total_ += size;
  if (buffered_ > 0) {
    const size_t part = size < 64 - buffered_ ? size : 64 - buffered_;
    std::memcpy(buffer_ + buffered_, p, part);
    buffered_ += part, p += part, size -= part;
    if (buffered_ < 64) return;
    chosen()(state_, buffer_, 1);
    buffered_ = 0;
  }
  if (size >= 64) chosen()(state_, p, size / 64);
  p += size / 64 * 64;
  if (size % 64 > 0) std::memcpy(buffer_, p, size % 64);
  buffered_ = size % 64;
}

void sha256_pair(const void* prefix, size_t prefix_size, const void* a, const void* b, size_t size, Digest* out) {
  const uint8_t* data[2] = {static_cast<const uint8_t*>(a), static_cast<const uint8_t*>(b)};
#if defined(AOS_AVX)
  static const bool fast = has_sha_instructions();  // asking the processor is slow, in a virtual machine very
  if (fast) {
    uint32_t state[2][8];
    uint8_t rest[2][128] = {};
    uint32_t* const states[2] = {state[0], state[1]};
    const uint8_t* const rests[2] = {rest[0], rest[1]};
    size_t held = prefix_size, left = size;  // bytes in `rest`, and in the messages
    for (size_t n = 0; n < 2; ++n) {
      std::memcpy(state[n], kInitial, sizeof kInitial);
      std::memcpy(rest[n], prefix, prefix_size);
    }
    if (held + left >= 64) {
      const size_t head = 64 - held;
      for (size_t n = 0; n < 2; ++n) std::memcpy(rest[n] + held, data[n], head), data[n] += head;
      compress_pair_with_sha_instructions(states, rests, 1);
      left -= head;
      const size_t whole = left / 64;
      compress_pair_with_sha_instructions(states, data, whole);
      for (size_t n = 0; n < 2; ++n) std::memset(rest[n], 0, 64), data[n] += 64 * whole;
      left %= 64, held = 0;
    }
    for (size_t n = 0; n < 2; ++n) std::memcpy(rest[n] + held, data[n], left), rest[n][held + left] = 0x80;
    const size_t blocks = held + left < 56 ? 1 : 2;
    const uint64_t bits = 8 * (uint64_t{prefix_size} + size);
    for (size_t n = 0; n < 2; ++n)
      for (size_t i = 0; i < 8; ++i) rest[n][64 * blocks - 8 + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    compress_pair_with_sha_instructions(states, rests, blocks);
    for (size_t n = 0; n < 2; ++n)
      for (size_t i = 0; i < 32; ++i) out[n][i] = static_cast<uint8_t>(state[n][i / 4] >> (24 - 8 * (i % 4)));
    return;
  }
#endif
  for (size_t n = 0; n < 2; ++n) {
    Sha256 h;
    h.update(prefix, prefix_size);
    h.update(data[n], size);
    out[n] = h.finish();
  }
}

Digest Sha256::finish() {
  const uint64_t bits = 8 * total_;
  const uint8_t padding[64] = {0x80};
  update(padding, (buffered_ < 56 ? 56 : 120) - buffered_);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length, 8);
  Digest out;
  for (int i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

Digest tree_root(std::vector<Digest> level) { return tree_root(level.data(), level.size()); }

Digest tree_root(Digest* level, size_t count) {
  while (count > 1) {
    size_t i = 0, out = 0;
    // Pairs of nodes: what node `out` reads lies at 2 * out and beyond, so nothing is overwritten too soon.
    for (; i + 4 <= count; i += 4, out += 2) sha256_pair(&kNode, 1, level[i].data(), level[i + 2].data(), 64, level + out);
    for (; i < count; i += 2, ++out) {
      if (i + 1 == count) {
        level[out] = level[i];  // an odd last one moves up
        continue;
      }
      Sha256 h;
      h.update(&kNode, 1);
      h.update(level[i].data(), 64);
      level[out] = h.finish();
    }
    count = out;
  }
  return level[0];
}

}  // namespace aos
