// A known-answer test of every operation, run before an engine computes anything: it finds a build that contracts a
// multiplication and an addition, reorders a sum or was otherwise not built as it must be.
#pragma once
#include "kernels.h"
#include "sha256.h"

namespace aos {

// SHA-256 over the outputs of all operations for fixed inputs.
Digest self_digest(const Kernels& kernels);
// Throws Error "engine.self_test".
void self_test(const Kernels& kernels);

}  // namespace aos
