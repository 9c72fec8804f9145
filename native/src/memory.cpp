#include "memory.h"

#include <sys/mman.h>

#include "error.h"

namespace aos {
namespace {
constexpr size_t kHugeFrom = size_t{4} << 20;
}

Memory::Memory(size_t size) : size_(size) {
  if (size == 0) return;
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw Error("engine.memory", "the system gives no " + std::to_string(size) + " bytes of memory");
#if defined(MADV_HUGEPAGE)
  if (size >= kHugeFrom) (void)madvise(p, size, MADV_HUGEPAGE);  // advice; without it everything is only slower
#endif
  data_ = static_cast<uint8_t*>(p);
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace aos
