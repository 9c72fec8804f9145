// Rule 9: the canonical sampler.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace aos {

// Parameters as binary32 (nearest to the millionths); a switched-off rule is not applied at all.
struct SamplingRules {
  float temperature = 0.0f;  // 0: argmax
  uint32_t top_k = 0;        // 0: all
  bool limit_top_p = false;
  float top_p = 1.0f;
  float min_p = 0.0f;
  bool penalise = false;
  float penalty = 1.0f;
  uint64_t seed = 0;
};

class Sampler {
 public:
  Sampler(const Kernels& kernels, size_t vocabulary, const SamplingRules& rules);

  // A token of the context, for the repetition penalty.
  void see(uint32_t token) { seen_[token] = true; }
  // The token of output index `step`, or -1 where an adjusted logit is not finite. `record` is the sampler record.
  int64_t choose(const float* logits, uint32_t step, std::vector<uint8_t>& record);

 private:
  // Kept are the ids whose key is at most `cut`; keys sort by adjusted logit (descending), then id.
  uint64_t key(size_t id) const { return uint64_t{rank_[id]} << 32 | id; }
  const std::vector<float>& chunk_masses(uint64_t cut);
  float mass(uint64_t cut);
  uint64_t cut_to(size_t count);
  uint64_t cut_below_min_p(uint64_t cut);
  uint64_t shortest(uint64_t cut, float target);
  uint32_t pick(uint64_t cut, float threshold);

  const Kernels& kernels_;
  size_t size_, chunks_;
  SamplingRules rules_;
  std::vector<bool> seen_;
  std::vector<float> adjusted_, weight_, by_offset_, masses_;
  std::vector<uint32_t> rank_, rank_by_offset_;
  std::vector<uint64_t> sorted_;
};

// Philox4x32-10 of Salmon et al. (2011): the first output word for counter (step, 0, 0, 0).
uint32_t philox(uint64_t key, uint32_t step);

}  // namespace aos
