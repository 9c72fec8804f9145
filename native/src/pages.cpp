#include "pages.h"

#include <string>

#include "error.h"

namespace aos {

Page::Page(std::shared_ptr<Pages> pages, Memory data, size_t leaf_count)
    : owner(std::move(pages)), memory(std::move(data)), leaves(leaf_count) {}

Page::~Page() { owner->give(std::move(memory)); }

std::shared_ptr<Page> Pages::take() {
  Memory memory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (in_use_ >= most_) throw Error("engine.memory", "all " + std::to_string(most_) + " pages of keys and values are in use");
    ++in_use_;
    if (!free_.empty()) {
      memory = std::move(free_.back());
      free_.pop_back();
    }
  }
  try {
    if (memory.size() == 0) memory = Memory(bytes_);
    return std::make_shared<Page>(shared_from_this(), std::move(memory), leaves_);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --in_use_;
    throw;
  }
}

void Pages::give(Memory memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  --in_use_;
  if (free_.size() < kept_) free_.push_back(std::move(memory));
}

void Pages::limit(size_t most) {
  const std::lock_guard<std::mutex> lock(mutex_);
  most_ = most;
}

size_t Pages::in_use() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return in_use_;
}

}  // namespace aos
