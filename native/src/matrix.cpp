#include "matrix.h"

#include <atomic>
#include <cstring>

#include "error.h"
#include "packed.h"

namespace aos {
namespace {

constexpr size_t kMaxColumns = size_t{1} << 24, kMaxRows = size_t{1} << 24;

bool finite_half(const uint8_t* at) { return (at[1] & 0x7c) != 0x7c; }

// The 16 nibble bytes of a row, where byte i holds weights i and i + 16.
void put_pairs(uint8_t* payload, size_t row, const uint8_t* pairs) {
  for (size_t j = 0; j < 4; ++j) std::memcpy(payload + 64 * j + 4 * row, pairs + 4 * j, 4);
}

// 32 integers of 4 bits each, or more with the further bits in `payload + 256`.
void put_integers(uint8_t* payload, size_t row, const uint8_t* q, int bits) {
  uint8_t pairs[16];
  for (size_t i = 0; i < 16; ++i) pairs[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 16] << 4);
  put_pairs(payload, row, pairs);
  for (size_t k = 0; k < 4; ++k) {
    if (bits == 5) {
      uint8_t high = 0;
      for (size_t j = 0; j < 8; ++j) high |= static_cast<uint8_t>((q[4 * j + k] >> 4) << j);
      payload[256 + 4 * row + k] = high;
    } else if (bits == 6) {
      for (size_t u = 0; u < 2; ++u) {
        uint8_t high = 0;
        for (size_t j = 0; j < 4; ++j) high |= static_cast<uint8_t>((q[4 * (4 * u + j) + k] >> 4) << 2 * j);
        payload[256 + 64 * u + 4 * row + k] = high;
      }
    }
  }
}

// The fifth bits of Q5_0 and Q5_1: bit i of a 32-bit word belongs to weight i.
void put_fifth_bits(uint8_t* high, size_t row, const uint8_t* word) {
  uint32_t bits;
  std::memcpy(&bits, word, 4);
  for (size_t k = 0; k < 4; ++k) {
    uint8_t out = 0;
    for (size_t j = 0; j < 8; ++j) out |= static_cast<uint8_t>((bits >> (4 * j + k) & 1) << j);
    high[4 * row + k] = out;
  }
}

// Scale and count of sub-block s of Q4_K and Q5_K: 12 bytes of 6-bit numbers.
void six_bits(const uint8_t* packed, size_t s, uint8_t& scale, uint8_t& count) {
  if (s < 4) {
    scale = packed[s] & 63;
    count = packed[s + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((packed[s + 4] & 15) | packed[s - 4] >> 6 << 4);
    count = static_cast<uint8_t>(packed[s + 4] >> 4 | packed[s] >> 6 << 4);
  }
}

// One row of a group, types whose blocks are 32 columns. False for a scale that is not finite.
template <Type type>
bool pack_row_32(const uint8_t* file, size_t blocks, uint8_t* group, size_t row) {
  constexpr Layout layout = layout_of(type);
  constexpr bool offset = type == Type::Q4_1 || type == Type::Q5_1;
  bool good = true;
  for (size_t b = 0; b < blocks; ++b, file += layout.file_bytes, group += layout.block_bytes) {
    good = good && finite_half(file) && (!offset || finite_half(file + 2));
    std::memcpy(group + 2 * row, file, 2);
    if (offset) std::memcpy(group + 32 + 2 * row, file + 2, 2);
    const uint8_t* data = file + (offset ? 4 : 2);
    uint8_t* payload = group + (offset ? 64 : 32);
    if constexpr (type == Type::Q8_0) {
      for (size_t j = 0; j < 8; ++j) std::memcpy(payload + 64 * j + 4 * row, data + 4 * j, 4);
    } else if constexpr (type == Type::Q5_0 || type == Type::Q5_1) {
      put_fifth_bits(payload + 256, row, data);
      put_pairs(payload, row, data + 4);
    } else {
      put_pairs(payload, row, data);
    }
  }
  return good;
}

// Types whose blocks are 256 columns: a packed chunk each.
template <Type type>
bool pack_row_256(const uint8_t* file, size_t blocks, uint8_t* group, size_t row) {
  constexpr Layout layout = layout_of(type);
  bool good = true;
  for (size_t b = 0; b < blocks / kChunkBlocks; ++b, file += layout.file_bytes) {
    const uint8_t* d = type == Type::Q6_K ? file + 208 : file;
    good = good && finite_half(d) && (type == Type::Q6_K || finite_half(d + 2));
    std::memcpy(group + 2 * row, d, 2);
    if (type != Type::Q6_K) std::memcpy(group + 32 + 2 * row, d + 2, 2);
    group += layout.header_bytes;
    for (size_t s = 0; s < kChunkBlocks; ++s, group += layout.block_bytes) {
      uint8_t q[kBlock];
      if constexpr (type == Type::Q6_K) {
        const uint8_t* low = file + 64 * (s / 4) + 32 * (s % 2);
        const uint8_t* high = file + 128 + 32 * (s / 4);
        for (size_t i = 0; i < kBlock; ++i)
          q[i] = static_cast<uint8_t>((low[i] >> (s % 4 < 2 ? 0 : 4) & 15) | (high[i] >> 2 * (s % 4) & 3) << 4);
        group[row] = file[192 + 2 * s];
        group[16 + row] = file[192 + 2 * s + 1];
        put_integers(group + 32, row, q, 6);
      } else {
        constexpr bool five = type == Type::Q5_K;
        const uint8_t* low = file + (five ? 48 : 16) + 32 * (s / 2);
        for (size_t i = 0; i < kBlock; ++i) {
          q[i] = low[i] >> (s % 2 == 0 ? 0 : 4) & 15;
          if (five) q[i] |= static_cast<uint8_t>((file[16 + i] >> s & 1) << 4);
        }
        six_bits(file + 4, s, group[row], group[16 + row]);
        put_integers(group + 32, row, q, five ? 5 : 4);
      }
    }
  }
  return good;
}

template <class T, T infinity>
bool pack_row_dense(const uint8_t* file, size_t columns, uint8_t* group, size_t row) {
  bool good = true;
  for (size_t i = 0; i < columns; ++i) {
    T bits;
    std::memcpy(&bits, file + sizeof(T) * i, sizeof(T));
    good = good && (bits & infinity) != infinity;
    std::memcpy(group + sizeof(T) * (kRows * i + row), &bits, sizeof(T));
  }
  return good;
}

bool pack_row(Type type, const uint8_t* file, size_t columns, uint8_t* group, size_t row) {
  const size_t blocks = columns / kBlock;
  switch (type) {
    case Type::F32: return pack_row_dense<uint32_t, 0x7f800000u>(file, columns, group, row);
    case Type::F16: return pack_row_dense<uint16_t, 0x7c00u>(file, columns, group, row);
    case Type::BF16: return pack_row_dense<uint16_t, 0x7f80u>(file, columns, group, row);
    case Type::Q4_0: return pack_row_32<Type::Q4_0>(file, blocks, group, row);
    case Type::Q4_1: return pack_row_32<Type::Q4_1>(file, blocks, group, row);
    case Type::Q5_0: return pack_row_32<Type::Q5_0>(file, blocks, group, row);
    case Type::Q5_1: return pack_row_32<Type::Q5_1>(file, blocks, group, row);
    case Type::Q8_0: return pack_row_32<Type::Q8_0>(file, blocks, group, row);
    case Type::Q4_K: return pack_row_256<Type::Q4_K>(file, blocks, group, row);
    case Type::Q5_K: return pack_row_256<Type::Q5_K>(file, blocks, group, row);
    case Type::Q6_K: return pack_row_256<Type::Q6_K>(file, blocks, group, row);
  }
  return false;
}

}  // namespace

Matrix::Matrix(Pool& pool, uint32_t type, size_t rows, size_t columns, const uint8_t* file, size_t size) {
  if (!known_type(type)) throw Error("engine.tensor_type", "type " + std::to_string(type) + " is not one of this engine's");
  type_ = static_cast<Type>(type);
  const Layout layout = layout_of(type_);
  if (rows == 0 || rows > kMaxRows || columns == 0 || columns > kMaxColumns || columns % kBlock != 0 ||
      columns % layout.file_columns != 0 || size != rows * (columns / layout.file_columns) * layout.file_bytes)
    throw Error("engine.matrix", "a matrix of " + std::to_string(rows) + " rows of " + std::to_string(columns) +
                                     " weights does not fit its " + std::to_string(size) + " bytes");
  rows_ = rows;
  columns_ = columns;
  group_bytes_ = aos::group_bytes(type_, columns);
  memory_ = Memory(groups() * group_bytes_);
  const size_t row_bytes = size / rows;
  std::atomic<bool> good{true};
  // Rows of a group take turns chunk by chunk, so that the group is written while it is in the cache.
  const size_t step = 8 * kChunk;
  pool.run(groups(), size, [&](size_t index, size_t) {
    for (size_t column = 0; column < columns_; column += step) {
      const size_t part = columns_ - column < step ? columns_ - column : step;
      uint8_t* out = memory_.data() + index * group_bytes_ + aos::group_bytes(type_, column);
      for (size_t row = 0; row < kRows && index * kRows + row < rows_; ++row) {
        const uint8_t* in = file + (index * kRows + row) * row_bytes + column / layout.file_columns * layout.file_bytes;
        if (!pack_row(type_, in, part, out, row)) good = false;
      }
    }
  });
  if (!good) throw Error("engine.not_finite", layout.dense ? "a weight is NaN or infinite" : "a scale is NaN or infinite");
}

void Matrix::row(size_t index, float* out) const {
  const uint8_t* at = group(index / kRows);
  const size_t row = index % kRows;
  if (dense()) {
    for (size_t i = 0; i < columns_; ++i) out[i] = dense_weight(type_, at, row, i);
    return;
  }
  PackedRow blocks(type_, at);
  for (size_t b = 0; b < columns_ / kBlock; ++b) {
    const PackedBlock& block = blocks.next();
    const float d = block.scale(row);
    const float offset = block.has_offset() ? block.offset(row) * static_cast<float>(block.count(row)) : 0.0f;
    for (size_t i = 0; i < kBlock; ++i, ++out) {
      // Exact products, but for the sign of a zero.
      *out = (d * static_cast<float>(block.factor(row, i))) * static_cast<float>(block.weight(row, i));
      if (block.has_offset()) *out = *out + offset;
    }
  }
}

}  // namespace aos
