// One run of a model: its positions, its sampler, and what is committed (docs/spec/07-inference.md, rules 9 and 10,
// "State root"). A Batch (batch.h) computes it, alone or together with others.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "model.h"
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

class Batch;

class Run : public std::enable_shared_from_this<Run> {
 public:
  static constexpr int64_t kTrapped = -1;

  Run(std::shared_ptr<Batch> batch, const std::vector<uint32_t>& prompt, const SamplingRules& rules);

  // Takes the first `positions` of the prompt, all of which its last leaves out, from pages that a run of the same tokens
  // has computed. Full pages are shared, the rest is copied. Only before anything is computed.
  void adopt(const std::vector<std::shared_ptr<Page>>& pages, size_t positions);
  // The page of positions from 256 * index on; what has been computed of it stays as it is.
  std::shared_ptr<Page> page(size_t index) const;
  // Takes the pages of that many positions now, so that computing them needs none.
  void reserve(size_t positions);

  // Keeps the residuals that these units leave, from now on. Only before anything is computed.
  void watch(const std::vector<size_t>& units);
  // The residuals of a watched unit, of every position that has it: [positions][width].
  const std::vector<float>& watched(size_t unit) const;
  // K and V of a layer at positions `first` to `end` - 1, as binary16: [positions][kv_width] each.
  void copy_cache(size_t layer, size_t first, size_t end, uint16_t* keys, uint16_t* values) const;

  size_t kv_width() const { return model_->sizes.kv_width(); }

  size_t length() const { return length_; }
  // Positions from the prompt's last on that are computed and have no token.
  size_t waiting() const { return residuals_.size() / model_->sizes.width + tails_->count - tails_->next; }
  const std::optional<Trap>& trap() const { return trap_; }

  // Leaf hashes of units, in order: of the positions before `positions`, or up to the trap.
  std::vector<Digest> leaves(size_t positions);
  std::vector<Digest> leaves_to_trap();

  const std::shared_ptr<Batch>& batch() const { return batch_; }

 private:
  friend class Batch;

  // Tails that were computed together, and what hashing them reads.
  struct Tails {
    Memory logits;  // [count][n_vocab]
    std::vector<uint32_t> ops;
    std::vector<std::vector<uint8_t>> endings;  // sampler record and token
    size_t count = 0, next = 0;
    std::deque<Digest> leaves;  // of positions n_prompt - 1 on
  };

  void take_pages(size_t positions);
  void append_leaves(std::vector<Digest>& out, size_t position, size_t units) const;

  const std::shared_ptr<Batch> batch_;
  const std::shared_ptr<Model> model_;
  const size_t n_prompt_;
  size_t length_ = 0, outputs_ = 0;
  std::optional<Trap> trap_;
  Sampler sampler_;
  std::vector<uint8_t> record_;
  std::vector<std::shared_ptr<Page>> pages_;
  std::vector<float> residuals_;  // of positions whose tail is not computed yet
  std::map<size_t, std::vector<float>> watched_;
  const std::shared_ptr<Tails> tails_ = std::make_shared<Tails>();
};

}  // namespace aos
