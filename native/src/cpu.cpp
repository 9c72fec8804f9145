#include "cpu.h"

#include "error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif
#if defined(AOS_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace aos {
namespace {

#if defined(AOS_AVX)
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (leaf <= __get_cpuid_max(0, nullptr)) __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  return r;
}

// Register sets that the operating system saves: XCR0.
uint64_t saved_registers() {
  if (!(cpuid(1, 0).c >> 27 & 1)) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool has_avx2() {
  const uint32_t c = cpuid(1, 0).c;
  const bool avx = c >> 28 & 1, f16c = c >> 29 & 1;
  return avx && f16c && (cpuid(7, 0).b >> 5 & 1) && (saved_registers() & 0x6) == 0x6;
}

bool has_avx512() {
  const Registers r = cpuid(7, 0);
  const bool f = r.b >> 16 & 1, dq = r.b >> 17 & 1, bw = r.b >> 30 & 1, vl = r.b >> 31 & 1, vnni = r.c >> 11 & 1;
  return has_avx2() && f && dq && bw && vl && vnni && (saved_registers() & 0xe6) == 0xe6;
}
#endif

}  // namespace

const std::vector<const Kernels*>& instruction_sets() {
  static const std::vector<const Kernels*> sets = [] {
    std::vector<const Kernels*> found{&kScalar};
#if defined(AOS_AVX)
    if (has_avx2()) found.push_back(&kAvx2);
    if (has_avx512()) found.push_back(&kAvx512);
#endif
#if defined(AOS_NEON)
    found.push_back(&kNeon);
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&kNeonDot);
#endif
    return found;
  }();
  return sets;
}

const Kernels& instruction_set(const std::string& name) {
  std::string known;
  for (const Kernels* kernels : instruction_sets()) {
    if (name == kernels->name) return *kernels;
    known += known.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw Error("engine.isa", "the instruction set '" + name + "' is unknown or this processor lacks it; it has " + known);
}

bool has_sha_instructions() {
#if defined(AOS_AVX)
  const uint32_t c = cpuid(1, 0).c;
  return (c >> 9 & 1) && (c >> 19 & 1) && (cpuid(7, 0).b >> 29 & 1);  // SSSE3, SSE4.1, SHA
#else
  return false;
#endif
}

#if defined(__x86_64__)
FloatState::FloatState() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
FloatState::~FloatState() { _mm_setcsr(static_cast<uint32_t>(saved_)); }
#elif defined(__aarch64__)
FloatState::FloatState() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
  __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
}
FloatState::~FloatState() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
#error "FloatState knows x86-64 and aarch64 only"
#endif

}  // namespace aos
