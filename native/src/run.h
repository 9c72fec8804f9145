// One run of a model: the forward pass in any grouping of positions, the sampler, and what is committed
// (docs/spec/07-inference.md, "The graph", rules 9 and 10, "State root").
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "model.h"
#include "products.h"
#include "sampler.h"
#include "sha256.h"

namespace aos {

// Operations inside a unit, in the order in which they are evaluated.
enum class Op : uint32_t {
  none, embedding, attn_norm, q, k, v, q_norm, k_norm, rope_q, rope_k, scores, softmax_sum, attention, attn_output,
  attn_residual, ffn_norm, gate, up, activation, down, ffn_residual, output_norm, logits, sampler,
};
// The number that a trap commits (rule 10).
constexpr uint32_t number(Op op) {
  if (op == Op::q_norm) return 22;
  if (op == Op::k_norm) return 23;
  return static_cast<uint32_t>(op) - (op > Op::k_norm ? 2 : 0);
}

struct Trap {
  size_t position, unit;
  Op op;
};

class Run {
 public:
  // Most positions that one call of extend() computes.
  static constexpr size_t kStep = 256;
  static constexpr int64_t kTrapped = -1;

  Run(std::shared_ptr<Model> model, const std::vector<uint32_t>& prompt, const SamplingRules& rules);

  ~Run();

  // Computes the next positions, at most kStep. Beyond a trap nothing is computed.
  void extend(const std::vector<uint32_t>& tokens);
  size_t length() const { return length_; }
  // Nanoseconds of all threads together that went into hashing leaves.
  uint64_t commitment_ns() const { return commitment_ns_; }
  // Positions whose residual waits for its tail.
  size_t waiting() const { return waiting_count_; }
  const std::optional<Trap>& trap() const { return trap_; }
  // Chooses the token at the next waiting position, or kTrapped; trap() is then that of the tail.
  int64_t choose();

  // Leaf hashes in commitment order (without the header): of the positions before `positions`, or up to the trap.
  std::vector<Digest> leaves(size_t positions);
  std::vector<Digest> leaves_to_trap();
  // The state root over the header's leaf entry and such leaves.
  static Digest root(const std::vector<uint8_t>& header_entry, const std::vector<Digest>& leaves);

 private:
  // A leaf to be hashed: in the next parallel region, before what it covers is overwritten.
  struct Leaf {
    uint32_t position, unit;
    const void* part[3];
    size_t size[3];
  };

  void embed(const std::vector<uint32_t>& tokens);
  void attention_half(const Layer& layer, size_t index);
  void attend(size_t index);
  void attend_tile(size_t index, size_t kv_head, size_t first_query, size_t count, size_t thread);
  void feed_forward(const Layer& layer);
  void settle(size_t unit);
  void trapped(size_t row, Op op);
  void check(size_t row, Op op, const float* x, size_t n);
  void per_row(size_t width, const std::function<void(size_t)>& work);
  uint16_t* keys(size_t page, size_t layer, size_t kv_head) const;
  uint16_t* values(size_t page, size_t layer, size_t kv_head) const;
  void reserve(size_t positions);
  void compute_tails();
  void hash(const Leaf& leaf);
  Extra pending();
  void flush();
  Digest& leaf_at(size_t position, size_t unit) { return leaves_[position * (sizes_.n_layers + 2) + unit]; }

  std::atomic<bool> busy_{false};
  std::shared_ptr<Model> model_;
  const Sizes& sizes_;
  const Kernels& kernels_;
  size_t n_prompt_;
  size_t length_ = 0, first_ = 0, rows_ = 0;
  size_t outputs_ = 0;
  std::optional<Trap> trap_;
  Sampler sampler_;
  std::vector<Memory> pages_;  // keys and values, kPage positions each
  std::vector<std::atomic<uint32_t>> ops_;
  Tiles tiles_;
  size_t capacity_ = 0;
  Memory x_, q_, k_, v_, k_half_, v_half_, mixed_, out_, gate_, up_;
  std::vector<Memory> scratch_;
  size_t scratch_positions_ = 0;

  std::vector<float> waiting_;  // residuals [waiting_from_ ..][width]
  size_t waiting_from_ = 0, waiting_count_ = 0;
  Memory logits_;
  std::vector<uint32_t> tail_ops_;
  size_t tails_from_ = 0, tails_count_ = 0;
  std::vector<uint8_t> record_;
  std::vector<std::vector<uint8_t>> endings_;  // sampler record and token of tails that are still to be hashed

  std::atomic<uint64_t> commitment_ns_{0};
  std::vector<Leaf> unhashed_, hashing_;
  std::vector<Digest> leaves_;
};

}  // namespace aos
