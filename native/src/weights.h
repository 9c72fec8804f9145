// Hashes of a tensor's rows (docs/spec/07-inference.md, "Weights root").
#pragma once
#include <string>
#include <vector>

#include "pool.h"
#include "sha256.h"

namespace aos {

struct RowHashes {
  std::vector<Digest> rows;
  Digest root;  // over the rows
  bool finite;  // no weight and no scale is NaN or infinite; true for a type that this engine does not compute with
};

// The tree root over each row's chunks, a chunk's leaf being SHA-256(prefix ‖ chunk). `data` holds whole rows. Throws Error
// "engine.matrix" for sizes that do not fit.
RowHashes hash_rows(Pool& pool, uint32_t type, const uint8_t* data, size_t size, size_t row_bytes, size_t chunk_bytes,
                    const std::string& prefix);

}  // namespace aos
