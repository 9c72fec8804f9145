#include "sha256.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "sha256_rounds.h"

namespace aos {
namespace {

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
      const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kSha256Round[i] + w[i];
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

void compress_1(uint32_t* states, const uint8_t* const* blocks, size_t count) { compress(states, blocks[0], count); }

#if defined(AOS_AVX)
void compress_1_with_sha_instructions(uint32_t* states, const uint8_t* const* blocks, size_t count) {
  compress_with_sha_instructions(states, blocks[0], count);
}
#endif

// What is the same for all messages: the state behind the prefix's whole blocks, the rest of the prefix, the lengths.
struct Shape {
  uint32_t state[8];
  uint8_t rest[64];
  size_t held, size;  // bytes in `rest`; of a message behind its prefix
  uint64_t bits;

  Shape(const void* prefix, size_t prefix_size, size_t message)
      : held(prefix_size % 64), size(message), bits(8 * (uint64_t{prefix_size} + message)) {
    const auto* p = static_cast<const uint8_t*>(prefix);
    std::memcpy(state, kInitial, sizeof kInitial);
    if (prefix_size >= 64) chosen()(state, p, prefix_size / 64);
    if (held > 0) std::memcpy(rest, p + prefix_size - held, held);
  }
};

// Messages in groups of way.lanes; lanes that are left over in the last one repeat a message.
template <size_t lanes>
void in_lanes_of(const Sha256Lanes& way, const Shape& shape, const uint8_t* const* data, size_t count, Digest* const* out) {
  const size_t held = shape.held;
  const bool joined = held + shape.size >= 64;         // the prefix's rest makes a block with the message's beginning
  const size_t head = joined && held > 0 ? 64 - held : 0, whole = joined ? (shape.size - head) / 64 : 0;
  const size_t begun = joined ? 0 : held, left = shape.size - head - 64 * whole, blocks = begun + left < 56 ? 1 : 2;
  // Where a message is long enough, 64 of its bytes are copied at once: what is too much falls in front or behind.
  const bool wide = shape.size >= 64;
  uint8_t first[lanes][128], last[lanes][64 + 128];
  for (size_t lane = 0; lane < lanes; ++lane) {
    if (head > 0) std::memcpy(first[lane], shape.rest, held);
    uint8_t* end = last[lane] + 64;
    std::memset(end, 0, 128);
    if (begun > 0) std::memcpy(end, shape.rest, begun);
    end[begun + left] = 0x80;
    for (size_t i = 0; i < 8; ++i) end[64 * blocks - 8 + i] = static_cast<uint8_t>(shape.bits >> (56 - 8 * i));
  }
  uint32_t states[8 * lanes];
  const uint8_t* at[lanes];
  for (size_t from = 0; from < count; from += lanes) {
    const uint8_t* message[lanes];
    for (size_t lane = 0; lane < lanes; ++lane) message[lane] = data[std::min(from + lane, count - 1)];
    for (size_t i = 0; i < 8; ++i)
      for (size_t lane = 0; lane < lanes; ++lane) states[i * lanes + lane] = shape.state[i];
    if (head > 0) {
      for (size_t lane = 0; lane < lanes; ++lane) {
        if (wide)
          std::memcpy(first[lane] + held, message[lane], 64);
        else
          std::memcpy(first[lane] + held, message[lane], head);
        at[lane] = first[lane];
      }
      way.compress(states, at, 1);
    }
    if (whole > 0) {
      for (size_t lane = 0; lane < lanes; ++lane) at[lane] = message[lane] + head;
      way.compress(states, at, whole);
    }
    for (size_t lane = 0; lane < lanes; ++lane) {
      uint8_t* end = last[lane] + 64 + begun;
      if (wide)
        std::memcpy(end + left - 64, message[lane] + shape.size - 64, 64);
      else if (left > 0)
        std::memcpy(end, message[lane] + shape.size - left, left);
      at[lane] = last[lane] + 64;
    }
    way.compress(states, at, blocks);
    for (size_t lane = 0; lane < std::min(lanes, count - from); ++lane) {
      uint8_t* digest = out[from + lane]->data();
      for (size_t i = 0; i < 8; ++i) {
        const uint32_t word = __builtin_bswap32(states[i * lanes + lane]);
        std::memcpy(digest + 4 * i, &word, 4);
      }
    }
  }
}

void in_lanes(const Sha256Lanes& way, const Shape& shape, const uint8_t* const* data, size_t count, Digest* const* out) {
  switch (way.lanes) {
    case 16: return in_lanes_of<16>(way, shape, data, count, out);
    case 8: return in_lanes_of<8>(way, shape, data, count, out);
    case 2: return in_lanes_of<2>(way, shape, data, count, out);
    default: return in_lanes_of<1>(way, shape, data, count, out);
  }
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

const std::vector<Sha256Lanes>& sha256_lanes() {
  // Asking the processor is slow, in a virtual machine very.
  static const std::vector<Sha256Lanes> found = [] {
    std::vector<Sha256Lanes> ways;
#if defined(AOS_AVX)
    const bool sha = has_sha_instructions();
    const auto has = [](const Kernels& kernels) {
      return std::find(instruction_sets().begin(), instruction_sets().end(), &kernels) != instruction_sets().end();
    };
    // Sixteen lanes take as long as seven or eight messages in pairs; eight lanes of AVX2 are slower than pairs.
    if (has(kAvx512)) ways.push_back({"avx512", 16, size_t{sha ? 8u : 2u}, compress_16_with_avx512});
    if (sha) {
      ways.push_back({"sha-pair", 2, 2, compress_2_with_sha_instructions});
      ways.push_back({"sha", 1, 1, compress_1_with_sha_instructions});
    }
    if (has(kAvx2)) ways.push_back({"avx2", 8, 2, compress_8_with_avx2});
#endif
    ways.push_back({"plain", 1, 1, compress_1});
    return ways;
  }();
  return found;
}

void sha256_many(const Sha256Lanes& way, const void* prefix, size_t prefix_size, const uint8_t* const* data, size_t size,
                 size_t count, Digest* const* out) {
  in_lanes(way, Shape(prefix, prefix_size, size), data, count, out);
}

void sha256_many(const void* prefix, size_t prefix_size, const uint8_t* const* data, size_t size, size_t count, Digest* const* out) {
  const Shape shape(prefix, prefix_size, size);
  for (const Sha256Lanes& way : sha256_lanes()) {
    if (count < way.least) continue;
    // Whole groups, and the rest too where there are enough of them.
    const size_t rest = count % way.lanes, part = rest >= way.least ? count : count - rest;
    if (part > 0) in_lanes(way, shape, data, part, out);
    data += part, out += part, count -= part;
    if (count == 0) return;
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
  tree_roots(level, 1, count);
  return level[0];
}

void tree_roots(Digest* level, size_t trees, size_t count) {
  constexpr size_t kAtOnce = 256;
  const uint8_t* pairs[kAtOnce];
  Digest* nodes[kAtOnce];
  for (size_t left = count; left > 1; left = (left + 1) / 2) {
    // What node i of a tree reads lies at 2 * i and beyond, so nothing is overwritten too soon.
    size_t waiting = 0;
    const auto hash = [&] {
      sha256_many(&kNode, 1, pairs, 2 * sizeof(Digest), waiting, nodes);
      waiting = 0;
    };
    for (size_t tree = 0; tree < trees; ++tree) {
      Digest* own = level + tree * count;
      for (size_t i = 0; i < left / 2; ++i) {
        pairs[waiting] = own[2 * i].data(), nodes[waiting] = own + i;
        if (++waiting == kAtOnce) hash();
      }
    }
    if (waiting > 0) hash();
    if (left % 2 == 1)
      for (size_t tree = 0; tree < trees; ++tree) level[tree * count + left / 2] = level[tree * count + left - 1];  // an odd last one moves up
  }
}

}  // namespace aos
