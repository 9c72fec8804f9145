// The processor: what it can do, and the floating-point state that the arithmetic needs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace aos {

// Instruction sets of this build that this processor has, the plainest first.
const std::vector<const Kernels*>& instruction_sets();
// By name; throws Error "engine.isa" for one that is unknown or that this processor lacks.
const Kernels& instruction_set(const std::string& name);
bool has_sha_instructions();

// Rounding to nearest, no exception trapped, subnormals kept, for as long as it lives. Rule 0.
class FloatState {
 public:
  FloatState();
  ~FloatState();
  FloatState(const FloatState&) = delete;
  FloatState& operator=(const FloatState&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace aos
