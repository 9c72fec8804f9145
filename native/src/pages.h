// Pages of keys and values: what a run has computed of 256 consecutive positions.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "sha256.h"

namespace aos {

constexpr size_t kPage = kChunk;  // positions of a page: a chunk of rule 6

class Pages;

// Keys, values and leaf hashes (every unit but the tail) of one page. Positions that have been computed never change, so
// a full page may be read by any number of runs; only the run that took a page writes the others.
struct Page : std::enable_shared_from_this<Page> {
  Page(std::shared_ptr<Pages> pages, Memory data, size_t leaf_count);
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  const std::shared_ptr<Pages> owner;
  Memory memory;
  std::vector<Digest> leaves;  // [kPage][units]
};

// The pages of one model. What lies in a page from before is finite, and no run reads what it has not written or adopted.
class Pages : public std::enable_shared_from_this<Pages> {
 public:
  // `kept`: how many pages that nobody uses keep their memory.
  Pages(size_t page_bytes, size_t leaves, size_t kept) : bytes_(page_bytes), leaves_(leaves), kept_(kept), most_(SIZE_MAX) {}
  // Throws Error "engine.memory" where as many pages as limit() allows are in use, or the system has no memory.
  std::shared_ptr<Page> take();
  void limit(size_t most);
  size_t in_use() const;
  size_t page_bytes() const { return bytes_; }

 private:
  friend struct Page;
  void give(Memory memory);

  const size_t bytes_, leaves_, kept_;
  mutable std::mutex mutex_;
  size_t most_, in_use_ = 0;
  std::vector<Memory> free_;
};

}  // namespace aos
