#include "model.h"

#include "error.h"

namespace aos {
namespace {

bool between(size_t value, size_t low, size_t high) { return low <= value && value <= high; }

}  // namespace

void Sizes::check() const {
  const bool good = between(n_ctx, 1, size_t{1} << 20) && between(n_layers, 1, 1024) && between(n_vocab, 1, size_t{1} << 24) &&
                    between(width, kBlock, size_t{1} << 20) && between(ff_width, kBlock, size_t{1} << 20) &&
                    between(n_heads, 1, 4096) && between(n_kv_heads, 1, n_heads) && between(head_width, 1, size_t{1} << 20) &&
                    between(n_rot, 2, head_width) && n_heads % n_kv_heads == 0 && n_rot % 2 == 0 && width % kBlock == 0 &&
                    ff_width % kBlock == 0 && attention_width() % kBlock == 0 && attention_width() <= size_t{1} << 24;
  if (!good) throw Error("engine.parameter", "sizes of the graph are out of range or do not fit one another");
}

namespace {

const Sizes& checked(const Sizes& sizes) {
  sizes.check();
  return sizes;
}

size_t checked_threads(size_t threads) {
  if (!between(threads, 1, 256)) throw Error("engine.threads", std::to_string(threads) + " threads are not in 1..256");
  return threads;
}

// Keys in tiles of 16 positions, then values, per layer and key head.
std::shared_ptr<Pages> pages_of(const Sizes& s) {
  const size_t bytes = s.n_layers * s.n_kv_heads * kPage * (s.head_width + s.padded_head()) * 2;
  return std::make_shared<Pages>(bytes, kPage * (s.n_layers + 1), (s.n_ctx + kPage - 1) / kPage);
}

}  // namespace

Model::Model(const Sizes& s, const Kernels& k, size_t threads, size_t alone_below, const float* c, const float* n)
    : sizes(checked(s)), kernels(k), pool(checked_threads(threads), alone_below), pages(pages_of(s)), cos(c, c + s.n_ctx * (s.n_rot / 2)),
      sin(n, n + s.n_ctx * (s.n_rot / 2)), layers(s.n_layers) {}

Model::MatrixSlot Model::matrix_slot(size_t index, const std::string& name) {
  if (name == "token_embd") return {&embedding, sizes.n_vocab, sizes.width};
  if (name == "output") return {&own_output, sizes.n_vocab, sizes.width};
  if (index < layers.size()) {
    Layer& layer = layers[index];
    if (name == "attn_q") return {&layer.q, sizes.attention_width(), sizes.width};
    if (name == "attn_k") return {&layer.k, sizes.kv_width(), sizes.width};
    if (name == "attn_v") return {&layer.v, sizes.kv_width(), sizes.width};
    if (name == "attn_output") return {&layer.attn_output, sizes.width, sizes.attention_width()};
    if (name == "ffn_gate") return {&layer.gate, sizes.ff_width, sizes.width};
    if (name == "ffn_up") return {&layer.up, sizes.ff_width, sizes.width};
    if (name == "ffn_down") return {&layer.down, sizes.width, sizes.ff_width};
  }
  throw Error("engine.tensor_unexpected", "the graph has no matrix " + name + " in layer " + std::to_string(index));
}

Model::VectorSlot Model::vector_slot(size_t index, const std::string& name) {
  if (name == "output_norm") return {&output_norm, sizes.width};
  if (index < layers.size()) {
    Layer& layer = layers[index];
    if (name == "attn_norm") return {&layer.attn_norm, sizes.width};
    if (name == "ffn_norm") return {&layer.ffn_norm, sizes.width};
    if (name == "attn_q_norm") return {&layer.q_norm, sizes.head_width};
    if (name == "attn_k_norm") return {&layer.k_norm, sizes.head_width};
    if (name == "attn_q_bias") return {&layer.q_bias, sizes.attention_width()};
    if (name == "attn_k_bias") return {&layer.k_bias, sizes.kv_width()};
    if (name == "attn_v_bias") return {&layer.v_bias, sizes.kv_width()};
  }
  throw Error("engine.tensor_unexpected", "the graph has no vector " + name + " in layer " + std::to_string(index));
}

void Model::set_matrix(size_t layer, const std::string& name, uint32_t type, size_t rows, size_t columns, const uint8_t* file,
                       size_t size) {
  if (sealed_) throw Error("engine.sealed", "the model is complete");
  const MatrixSlot slot = matrix_slot(layer, name);
  if (rows != slot.rows || columns != slot.columns || slot.matrix->present())
    throw Error("engine.tensor_shape", "the matrix " + name + " has another shape than the graph's, or comes twice");
  *slot.matrix = Matrix(pool, type, rows, columns, file, size);
  packed_bytes_ += slot.matrix->groups() * slot.matrix->bytes_of_group();
}

void Model::set_vector(size_t layer, const std::string& name, const float* values, size_t count) {
  if (sealed_) throw Error("engine.sealed", "the model is complete");
  const VectorSlot slot = vector_slot(layer, name);
  if (count != slot.count || !slot.values->empty())
    throw Error("engine.tensor_shape", "the vector " + name + " has another length than the graph's, or comes twice");
  if (!kernels.finite(values, count)) throw Error("engine.not_finite", "a weight is NaN or infinite");
  slot.values->assign(values, values + count);
}

void Model::seal() {
  bool complete = embedding.present() && !output_norm.empty();
  for (const Layer& l : layers) {
    complete = complete && l.q.present() && l.k.present() && l.v.present() && l.attn_output.present() && l.gate.present() &&
               l.up.present() && l.down.present() && !l.attn_norm.empty() && !l.ffn_norm.empty() &&
               l.q_norm.empty() == l.k_norm.empty();
  }
  if (!complete) throw Error("engine.tensor_missing", "a tensor of the graph is missing");
  sealed_ = true;
}

}  // namespace aos
