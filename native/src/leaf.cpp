#include "leaf.h"

#include <algorithm>
#include <initializer_list>

namespace aos {
namespace {

void put_u32(uint8_t* at, size_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

constexpr uint8_t kLeaf = 0;  // RFC 9162's prefix

// A leaf whose entry begins with a tag (its final zero byte belongs to it) and two or three numbers.
template <size_t size>
Sha256 leaf_of(const char (&tag)[size], std::initializer_list<size_t> numbers) {
  Sha256 h;
  h.update(&kLeaf, 1);
  h.update(tag, size);
  for (const size_t number : numbers) {
    uint8_t raw[4];
    put_u32(raw, number);
    h.update(raw, sizeof raw);
  }
  return h;
}

}  // namespace

Digest part_root(const PartBytes& part) {
  if (part.size == 0) return Sha256().finish();
  const auto* data = static_cast<const uint8_t*>(part.data);
  const size_t whole = part.size / part.tile, tiles = (part.size + part.tile - 1) / part.tile;
  std::vector<Digest> level(tiles);
  std::vector<const uint8_t*> entries(tiles);
  std::vector<Digest*> digests(tiles);
  for (size_t tile = 0; tile < tiles; ++tile) entries[tile] = data + tile * part.tile, digests[tile] = &level[tile];
  sha256_many(&kLeaf, 1, entries.data(), part.tile, whole, digests.data());
  if (whole < tiles) sha256_many(&kLeaf, 1, entries.data() + whole, part.size - whole * part.tile, 1, digests.data() + whole);
  return tree_root(level.data(), tiles);
}

Digest leaf_hash(size_t position, size_t unit, const PartBytes* parts, size_t count) {
  Sha256 h = leaf_of("AOS/state-leaf/v2", {position, unit});
  for (size_t i = 0; i < count; ++i) {
    const Digest root = part_root(parts[i]);
    h.update(root.data(), root.size());
  }
  return h.finish();
}

Digest trap_hash(size_t position, size_t unit, size_t op) { return leaf_of("AOS/state-trap/v1", {position, unit, op}).finish(); }

Digest position_hash(size_t position, const Digest* units, size_t count) {
  const Digest root = tree_root(std::vector<Digest>(units, units + count));
  Sha256 h = leaf_of("AOS/state-position/v1", {position, count});
  h.update(root.data(), root.size());
  return h.finish();
}

Digest state_root(const std::vector<uint8_t>& header_entry, const std::vector<Digest>& leaves, size_t units) {
  Sha256 h;
  h.update(&kLeaf, 1);
  h.update(header_entry.data(), header_entry.size());
  std::vector<Digest> level{h.finish()};
  for (size_t at = 0; at < leaves.size(); at += units)
    level.push_back(position_hash(at / units, leaves.data() + at, std::min(units, leaves.size() - at)));
  return tree_root(std::move(level));
}

}  // namespace aos
