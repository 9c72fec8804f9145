#include "weights.h"

#include <algorithm>
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
  if (row_bytes == 0 || chunk_bytes == 0 || size == 0 || size % row_bytes != 0)
    throw Error("engine.matrix", "the tensor's bytes are not whole rows");
  const size_t rows = size / row_bytes, step = kItemBytes / row_bytes + 1;
  const size_t whole = row_bytes / chunk_bytes, rest = row_bytes % chunk_bytes, chunks = whole + (rest > 0 ? 1 : 0);
  RowHashes out{std::vector<Digest>(rows), {}, true};
  std::atomic<bool> finite{true};
  pool.run((rows + step - 1) / step, size, [&](size_t item, size_t) {
    const size_t begin = item * step, count = std::min(step, rows - begin);
    const uint8_t* at = data + begin * row_bytes;
    std::vector<Digest> level(count * chunks);
    std::vector<const uint8_t*> messages(count * chunks);
    std::vector<Digest*> digests(count * chunks);
    // The whole chunks of all rows, then the short last ones.
    for (size_t row = 0; row < count; ++row)
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const size_t place = chunk < whole ? row * whole + chunk : count * whole + row;
        messages[place] = at + row * row_bytes + chunk * chunk_bytes;
        digests[place] = &level[row * chunks + chunk];
      }
    sha256_many(prefix.data(), prefix.size(), messages.data(), chunk_bytes, count * whole, digests.data());
    if (rest > 0)
      sha256_many(prefix.data(), prefix.size(), messages.data() + count * whole, rest, count, digests.data() + count * whole);
    tree_roots(level.data(), count, chunks);
    for (size_t row = 0; row < count; ++row) out.rows[begin + row] = level[row * chunks];
    if (!finite_weights(type, at, count * row_bytes)) finite = false;
  });
  out.finite = finite;
  out.root = tree_root(out.rows);
  return out;
}

}  // namespace aos
