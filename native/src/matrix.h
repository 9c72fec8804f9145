// A weight matrix, packed from the file's blocks (kernels.h has the layout).
#pragma once
#include <functional>
#include <string>

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace aos {

class Matrix {
 public:
  Matrix() = default;
  // Packs `rows` rows of `columns` weights; `size` bytes of file data. Throws Error "engine.matrix" where the sizes do not
  // fit, "engine.not_finite" for a scale or weight that is NaN or infinite.
  Matrix(Pool& pool, uint32_t type, size_t rows, size_t columns, const uint8_t* file, size_t size);

  bool present() const { return rows_ > 0; }
  Type type() const { return type_; }
  bool dense() const { return layout_of(type_).dense; }
  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (rows_ + kRows - 1) / kRows; }
  size_t padded_rows() const { return groups() * kRows; }
  size_t bytes_of_group() const { return group_bytes_; }
  const uint8_t* group(size_t index) const { return memory_.data() + index * group_bytes_; }
  // Rule 8: one row, dequantised.
  void row(size_t index, float* out) const;

 private:
  Type type_ = Type::F32;
  size_t rows_ = 0, columns_ = 0, group_bytes_ = 0;
  Memory memory_;
};

}  // namespace aos
