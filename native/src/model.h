// A model ready to run: sizes, packed weights, rotary table, threads.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cpu.h"
#include "kernels.h"
#include "matrix.h"
#include "pages.h"
#include "pool.h"

namespace aos {

struct Sizes {
  size_t n_ctx, n_layers, n_vocab, width, ff_width, n_heads, n_kv_heads, head_width, n_rot;
  float eps;
  bool rope_neighbours;  // pairs (2i, 2i + 1); else (i, i + n_rot / 2)

  size_t attention_width() const { return n_heads * head_width; }
  size_t kv_width() const { return n_kv_heads * head_width; }
  size_t padded_head() const { return (head_width + kRows - 1) / kRows * kRows; }
  // Throws Error "engine.parameter" for sizes that do not fit one another.
  void check() const;
};

struct Layer {
  Matrix q, k, v, attn_output, gate, up, down;
  std::vector<float> attn_norm, ffn_norm, q_norm, k_norm, q_bias, k_bias, v_bias;  // empty: the graph has none
};

class Model {
 public:
  // `cos` and `sin` are [n_ctx][n_rot / 2].
  Model(const Sizes& sizes, const Kernels& kernels, size_t threads, size_t alone_below, const float* cos, const float* sin);

  // Packs one tensor; `layer` is ignored for those that no layer has. Throws Error (matrix.h).
  void set_matrix(size_t layer, const std::string& name, uint32_t type, size_t rows, size_t columns, const uint8_t* file, size_t size);
  void set_vector(size_t layer, const std::string& name, const float* values, size_t count);
  // Throws Error "engine.tensor_missing" unless everything that every graph needs is there.
  void seal();

  const Sizes sizes;
  const Kernels& kernels;
  Pool pool;
  const std::shared_ptr<Pages> pages;
  std::vector<float> cos, sin;
  std::vector<Layer> layers;
  std::vector<float> output_norm;
  Matrix embedding, own_output;
  const Matrix& output() const { return own_output.present() ? own_output : embedding; }
  bool sealed() const { return sealed_; }
  size_t packed_bytes() const { return packed_bytes_; }

 private:
  struct MatrixSlot {
    Matrix* matrix;
    size_t rows, columns;
  };
  struct VectorSlot {
    std::vector<float>* values;
    size_t count;
  };
  MatrixSlot matrix_slot(size_t layer, const std::string& name);
  VectorSlot vector_slot(size_t layer, const std::string& name);

  bool sealed_ = false;
  size_t packed_bytes_ = 0;
};

}  // namespace aos
