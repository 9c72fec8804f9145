// Threads that share the items of one parallel region. Which thread takes which item is left open; no result depends on it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace aos {

class Pool {
 public:
  // `threads` counts the calling thread. A region that touches fewer than `alone_below` bytes stays on the caller, as
  // waking others would take longer.
  explicit Pool(size_t threads, size_t alone_below = kAloneBelow);
  static constexpr size_t kAloneBelow = size_t{96} << 10;
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  size_t threads() const { return workers_.size() + 1; }
  // How many of the threads take part from now on, 1 to threads(). No result depends on it.
  void limit(size_t threads);
  // Calls work(item, thread) for every item; thread is below threads(). `bytes` is about what all items touch together. Rethrows the first exception. Regions of
  // several callers take turns; a region must not start another.
  void run(size_t items, size_t bytes, const std::function<void(size_t, size_t)>& work);

 private:
  void worker(size_t thread);
  void take(size_t thread);

  const size_t alone_below_;
  std::vector<std::thread> workers_;
  const std::function<void(size_t, size_t)>* work_ = nullptr;
  size_t items_ = 0;
  size_t taking_part_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> generation_{0}, busy_{0};
  std::atomic<bool> stop_{false};
  std::mutex region_, mutex_;
  std::condition_variable wake_, done_;
  std::exception_ptr error_;
  int process_;
};

}  // namespace aos
