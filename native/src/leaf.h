// Hashes of units, traps and positions (docs/spec/07-inference.md, "State root").
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sha256.h"

namespace aos {

constexpr size_t kTile = 1024, kCacheTile = 512;  // bytes of a tile: of K and V kCacheTile

// A part of a unit's payload: its bytes, and of how many a tile has (the last may be short).
struct PartBytes {
  const void* data;
  size_t size, tile;
};

// The root over a part's tiles; a part of no bytes has that of no leaves.
Digest part_root(const PartBytes& part);
// The leaf of a unit; without parts, that of a tail which chooses no token.
Digest leaf_hash(size_t position, size_t unit, const PartBytes* parts = nullptr, size_t count = 0);
Digest trap_hash(size_t position, size_t unit, size_t op);
// The leaf of a position over those of its units, `count` of them.
Digest position_hash(size_t position, const Digest* units, size_t count);
// The state root over the header's leaf entry and the leaves of all positions, `units` each; the last may have fewer.
Digest state_root(const std::vector<uint8_t>& header_entry, const std::vector<Digest>& leaves, size_t units);

}  // namespace aos
