// Activations in tiles and matrix products over them, for any number of positions (rule 2).
#pragma once
#include <functional>
#include <vector>

#include "matrix.h"
#include "memory.h"
#include "pool.h"

namespace aos {

// Work that a parallel region does beside its own: items [0, size), taken first.
struct Extra {
  size_t size = 0;
  std::function<void(size_t)> work;
};

// One product: y[t * stride + row], stride = matrix.padded_rows().
struct Product {
  const Matrix* matrix;
  float* y;
};

// The tiles of up to `positions` activations of up to `columns` values.
class Tiles {
 public:
  // Lays out tiles for `positions` rows of `columns` values; what the last tile lacks is zero. `quantised`, `dense`: which
  // forms the products need.
  void begin(size_t positions, size_t columns, bool quantised, bool dense);
  // Puts in the activations of one position. Positions may be put by several threads.
  void put(const Kernels& kernels, size_t position, const float* x);
  // Every product over these tiles, in one parallel region. `y` has room for padded() positions.
  void multiply(Pool& pool, const Kernels& kernels, const std::vector<Product>& products, const Extra& extra = {}) const;
  static size_t padded(size_t positions);

 private:
  struct Tile {
    size_t first, width_index;
  };
  std::vector<Tile> tiles_;
  size_t positions_ = 0, columns_ = 0;
  bool quantised_ = false, dense_ = false;
  Memory q_, d_;
};

}  // namespace aos
