// Leaf hashes of a unit and of a trap (docs/spec/07-inference.md, "State root").
#pragma once
#include <cstddef>
#include <cstdint>

#include "sha256.h"

namespace aos {

inline void put_u32(uint8_t* at, size_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

inline Sha256 leaf_hash_of(const char* tag, size_t size) {
  Sha256 h;
  const uint8_t leaf = 0;
  h.update(&leaf, 1);
  h.update(tag, size);
  return h;
}

// The payload is up to three pieces.
inline Digest leaf_hash(size_t position, size_t unit, const void* const* parts = nullptr, const size_t* sizes = nullptr) {
  constexpr char kTag[] = "AOS/state-leaf/v1";  // its final zero byte belongs to it
  Sha256 h = leaf_hash_of(kTag, sizeof kTag);
  uint8_t place[8];
  put_u32(place, position);
  put_u32(place + 4, unit);
  h.update(place, sizeof place);
  for (size_t i = 0; parts != nullptr && i < 3; ++i)
    if (sizes[i] > 0) h.update(parts[i], sizes[i]);
  return h.finish();
}

inline Digest trap_hash(size_t position, size_t unit, size_t op) {
  constexpr char kTag[] = "AOS/state-trap/v1";
  Sha256 h = leaf_hash_of(kTag, sizeof kTag);
  uint8_t entry[12];
  put_u32(entry, position);
  put_u32(entry + 4, unit);
  put_u32(entry + 8, op);
  h.update(entry, sizeof entry);
  return h.finish();
}

}  // namespace aos
