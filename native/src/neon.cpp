// NEON as every 64-bit ARM processor has it.
#include "neon.inc.h"

namespace aos {

constinit const Kernels kNeon = table("neon");

}  // namespace aos
