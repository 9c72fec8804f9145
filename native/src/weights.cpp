#include "weights.h"

#include <atomic>
#include <cstring>

#include "error.h"
#include "kernels.h"

namespace aos {
namespace {

constexpr size_t kItemBytes = size_t{256} << 10;

template <class T, T infinity>
bool dense_finite(const uint8_t* data, size_t size) {
  bool good = true;
  for (size_t at = 0; at + sizeof(T) <= size; at += sizeof(T)) {
    T bits;
    std::memcpy(&bits, data + at, sizeof(T));
    good &= (bits & infinity) != infinity;
  }
  return good;
}

// The binary16 at `first`, and at `second` where there is one, of every block.
bool scales_finite(const uint8_t* data, size_t size, size_t block, size_t first, size_t second) {
  bool good = true;
  for (size_t at = 0; at + block <= size; at += block)
    good &= (data[at + first + 1] & 0x7c) != 0x7c && (data[at + second + 1] & 0x7c) != 0x7c;
  return good;
}

bool finite_weights(uint32_t type, const uint8_t* data, size_t size) {
  if (!known_type(type)) return true;
  const size_t block = layout_of(static_cast<Type>(type)).file_bytes;
  switch (static_cast<Type>(type)) {
    case Type::F32: return dense_finite<uint32_t, 0x7f800000u>(data, size);
    case Type::F16: return dense_finite<uint16_t, 0x7c00u>(data, size);
    case Type::BF16: return dense_finite<uint16_t, 0x7f80u>(data, size);
    case Type::Q4_1: case Type::Q5_1: case Type::Q4_K: case Type::Q5_K: return scales_finite(data, size, block, 0, 2);
    case Type::Q6_K: return scales_finite(data, size, block, 208, 208);
    default: return scales_finite(data, size, block, 0, 0);
  }
}

}  // namespace

RowHashes hash_rows(Pool& pool, uint32_t type, const uint8_t* data, size_t size, size_t row_bytes, size_t chunk_bytes,
                    const std::string& prefix) {
  if (row_bytes == 0 || chunk_bytes == 0 || size == 0 || size % row_bytes != 0 || prefix.size() >= 64)
    throw Error("engine.matrix", "the tensor's bytes are not whole rows");
  const size_t rows = size / row_bytes, step = kItemBytes / row_bytes + 1, chunks = (row_bytes + chunk_bytes - 1) / chunk_bytes;
  RowHashes out{std::vector<Digest>(rows), true};
  std::atomic<bool> finite{true};
  pool.run((rows + step - 1) / step, size, [&](size_t item, size_t) {
    std::vector<Digest> level(chunks + 1);  // room for the second of a last pair
    const size_t end = (item + 1) * step < rows ? (item + 1) * step : rows;
    for (size_t row = item * step; row < end; ++row) {
      const uint8_t* at = data + row * row_bytes;
      const size_t whole = row_bytes / chunk_bytes;
      size_t chunk = 0;
      for (; chunk + 2 <= whole; chunk += 2)
        sha256_pair(prefix.data(), prefix.size(), at + chunk * chunk_bytes, at + (chunk + 1) * chunk_bytes, chunk_bytes, &level[chunk]);
      for (; chunk < chunks; ++chunk) {
        Sha256 h;
        h.update(prefix.data(), prefix.size());
        h.update(at + chunk * chunk_bytes, chunk < whole ? chunk_bytes : row_bytes - whole * chunk_bytes);
        level[chunk] = h.finish();
      }
      out.rows[row] = tree_root(level.data(), chunks);
    }
    if (!finite_weights(type, data + item * step * row_bytes, (end - item * step) * row_bytes)) finite = false;
  });
  out.finite = finite;
  return out;
}

}  // namespace aos
