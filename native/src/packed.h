// Reading one weight of a packed group: for the scalar definition and for rows of the embedding.
// Everything here is `static` on purpose: each instruction set is compiled with its own flags, and a function shared by
// the linker could be the one built for a newer processor.
#pragma once
#include <cstring>

#include "kernels.h"

namespace aos {

[[maybe_unused]] static float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

[[maybe_unused]] static uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// binary16 to binary32, exact.
[[maybe_unused]] static float widen(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // exact: at most 10 bits
  return from_bits(sign | to_bits(magnitude));
}

[[maybe_unused]] static float half_at(const uint8_t* at, size_t index) {
  uint16_t half;
  std::memcpy(&half, at + 2 * index, 2);
  return widen(half);
}

// One block of 32 columns of a quantised group (kernels.h has the layout).
struct PackedBlock {
  Type type;
  const uint8_t* header;
  const uint8_t* at;

  size_t scale_bytes() const {
    switch (type) {
      case Type::Q4_1: case Type::Q5_1: return 64;
      default: return 32;
    }
  }
  // d, widened.
  float scale(size_t row) const {
    return half_at(type == Type::Q4_K || type == Type::Q5_K || type == Type::Q6_K ? header : at, row);
  }
  bool has_offset() const {
    return type == Type::Q4_1 || type == Type::Q5_1 || type == Type::Q4_K || type == Type::Q5_K;
  }
  // m, or -dmin.
  float offset(size_t row) const {
    return type == Type::Q4_1 || type == Type::Q5_1 ? half_at(at + 32, row) : -half_at(header + 32, row);
  }
  // The integer that multiplies the offset.
  int count(size_t row) const { return type == Type::Q4_K || type == Type::Q5_K ? at[16 + row] : 1; }
  // The integer scale of 16 or 32 columns, or 1.
  int factor(size_t row, size_t column) const {
    if (type == Type::Q4_K || type == Type::Q5_K) return at[row];
    return type == Type::Q6_K ? static_cast<int8_t>(at[(column < 16 ? 0 : 16) + row]) : 1;
  }
  // The weight's integer; `factor` multiplies it.
  int weight(size_t row, size_t column) const {
    const uint8_t* payload = at + scale_bytes();
    const size_t lane = 4 * row + column % 4, j = column / 4;
    if (type == Type::Q8_0) return static_cast<int8_t>(payload[64 * j + lane]);
    int value = payload[64 * (j % 4) + lane] >> (j < 4 ? 0 : 4) & 15;
    switch (type) {
      case Type::Q4_0: return value - 8;
      case Type::Q4_1: case Type::Q4_K: return value;
      case Type::Q5_0: return (value | (payload[256 + lane] >> j & 1) << 4) - 16;
      case Type::Q5_1: case Type::Q5_K: return value | (payload[256 + lane] >> j & 1) << 4;
      case Type::Q6_K:
        return (value | (payload[256 + 64 * (j / 4) + lane] >> 2 * (j % 4) & 3) << 4) - 32;
      default: return 0;
    }
  }
};

// Steps through the blocks of a quantised group.
class PackedRow {
 public:
  PackedRow(Type type, const uint8_t* group) : layout_(layout_of(type)), block_{type, group, group} {}
  // The next block; call it once per block, in order.
  const PackedBlock& next() {
    if (index_ % kChunkBlocks == 0) {
      block_.header = next_;
      next_ += layout_.header_bytes;
    }
    ++index_;
    block_.at = next_;
    next_ += layout_.block_bytes;
    return block_;
  }

 private:
  Layout layout_;
  PackedBlock block_;
  const uint8_t* next_ = block_.at;
  size_t index_ = 0;
};

// A weight of a dense group, widened.
[[maybe_unused]] static float dense_weight(Type type, const uint8_t* group, size_t row, size_t column) {
  const size_t at = kRows * column + row;
  if (type == Type::F16) return half_at(group, at);
  if (type == Type::BF16) {
    uint16_t upper;
    std::memcpy(&upper, group + 2 * at, 2);
    return from_bits(uint32_t{upper} << 16);
  }
  float value;
  std::memcpy(&value, group + 4 * at, 4);
  return value;
}

}  // namespace aos
