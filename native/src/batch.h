// The forward pass over positions of any number of runs (docs/spec/07-inference.md, "The graph", rule 10). Every
// operation treats a position alone, and attention reads the keys of its own run only, so no run's bits depend on what
// else is computed with it.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "leaf.h"
#include "products.h"
#include "run.h"

namespace aos {

class Batch : public std::enable_shared_from_this<Batch> {
 public:
  // Most positions of one run, and of all runs, in one call of extend().
  static constexpr size_t kStep = 256, kMost = 1024;

  explicit Batch(std::shared_ptr<Model> model);

  struct Part {
    std::shared_ptr<Run> run;
    std::vector<uint32_t> tokens;
  };

  // Computes the next positions of different runs. Beyond a run's trap nothing of it is computed; the others go on. Refuses
  // the call as a whole, before anything is computed (Error "engine.step", "engine.token", "engine.trapped", "engine.memory").
  void extend(const std::vector<Part>& parts);
  // Chooses the token at the next waiting position of each of these runs, or kTrapped; trap() is then that of the tail.
  std::vector<int64_t> choose(const std::vector<std::shared_ptr<Run>>& runs);

  // Hashes the leaves that wait, so that the batch holds no page of a run.
  void settle_leaves();

  // Nanoseconds of all threads together that went into hashing leaves.
  uint64_t commitment_ns() const { return commitment_ns_; }
  const std::shared_ptr<Model>& model() const { return model_; }

 private:
  friend class Run;

  // A batch is used by one thread at a time; a second one is told so.
  class Turn {
   public:
    explicit Turn(Batch& batch);
    ~Turn() { busy_ = false; }

   private:
    std::atomic<bool>& busy_;
  };

  struct Row {
    size_t part, position;
  };
  // Consecutive queries (row, head) of one run that share a key head.
  struct Attention {
    size_t first_row, kv_head, first_query, count;
  };
  // A leaf to be hashed: in the next parallel region, before what it covers is overwritten.
  struct Leaf {
    Digest* to;
    uint32_t position, unit;
    PartBytes parts[3];
    size_t count;
  };

  void begin(const std::vector<Part>& parts);
  void reserve(size_t rows, size_t positions);
  void plan_attention();
  void embed();
  void attention_half(const Layer& layer, size_t index);
  void put_position(const Layer& layer, size_t index, size_t row);
  void attend(size_t index);
  void attend_tile(size_t index, const Attention& tile, size_t thread);
  void feed_forward(const Layer& layer);
  void settle(size_t unit);
  void end();
  void compute_tails(const std::vector<std::shared_ptr<Run>>& runs);
  void trapped(size_t row, Op op);
  void check(size_t row, Op op, const float* x, size_t n);
  void per_row(size_t width, const std::function<void(size_t)>& work);
  uint16_t* keys(const Page& page, size_t layer, size_t kv_head) const;
  uint16_t* values(const Page& page, size_t layer, size_t kv_head) const;
  void copy_positions(const Page& from, Page& to, size_t count) const;
  void hash(const Leaf& leaf);
  Extra pending();
  void flush();

  std::atomic<bool> busy_{false};
  const std::shared_ptr<Model> model_;
  const Sizes& sizes_;
  const Kernels& kernels_;

  const std::vector<Part>* parts_ = nullptr;
  std::vector<Row> rows_;
  std::vector<Attention> attention_;
  size_t attention_bytes_ = 0;
  std::vector<std::atomic<uint32_t>> ops_;
  Tiles tiles_;
  size_t capacity_ = 0;
  Memory x_, q_, k_, v_, k_half_, v_half_, mixed_, out_, gate_, up_, logits_;
  std::vector<Memory> scratch_;
  size_t scratch_positions_ = 0;

  std::atomic<uint64_t> commitment_ns_{0};
  std::vector<Leaf> unhashed_, hashing_;
  std::vector<std::shared_ptr<void>> held_, held_hashing_;  // what those leaves point into
};

}  // namespace aos
