// NEON with the dot product of signed bytes (ARMv8.2 FEAT_DotProd).
#include "neon.inc.h"

#if !defined(__ARM_FEATURE_DOTPROD)
#error "compile with -march=armv8.2-a+dotprod"
#endif

namespace aos {

constinit const Kernels kNeonDot = table("neon-dot");

}  // namespace aos
