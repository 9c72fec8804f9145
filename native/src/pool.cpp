#include "pool.h"

#include <unistd.h>

#include "cpu.h"
#include "error.h"

namespace aos {
namespace {

// How often a thread looks again before it sleeps: some tens of microseconds, the gap between two regions of one token.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

Pool::Pool(size_t threads, size_t alone_below) : alone_below_(alone_below), taking_part_(threads), process_(getpid()) {
  try {
    for (size_t thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { worker(thread); });
  } catch (...) {
    stop_ = true;
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw Error("engine.threads", "the system gives no " + std::to_string(threads) + " threads");
  }
}

Pool::~Pool() {
  if (process_ != getpid()) {
    // A forked copy: the threads exist in the parent only.
    for (std::thread& worker : workers_) worker.detach();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::limit(size_t threads) {
  const std::lock_guard<std::mutex> region(region_);
  if (threads < 1 || threads > workers_.size() + 1)
    throw Error("engine.threads", std::to_string(threads) + " threads are not in 1.." + std::to_string(workers_.size() + 1));
  taking_part_ = threads;
}

void Pool::take(size_t thread) {
  try {
    for (size_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) (*work_)(item, thread);
  } catch (...) {
    next_ = items_;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void Pool::run(size_t items, size_t bytes, const std::function<void(size_t, size_t)>& work) {
  const std::lock_guard<std::mutex> region(region_);
  if (taking_part_ == 1 || items <= 1 || bytes < alone_below_) {
    for (size_t item = 0; item < items; ++item) work(item, 0);
    return;
  }
  if (process_ != getpid())
    throw Error("engine.forked", "this process was forked after the model was loaded, so the engine's threads are not in it");
  work_ = &work;
  items_ = items;
  next_ = 0;
  error_ = nullptr;
  busy_.store(workers_.size(), std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  take(0);
  for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; ++spin) {
    if (spin < kSpins) {
      relax();
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_.load(std::memory_order_acquire) == 0; });
  }
  if (error_) std::rethrow_exception(error_);
}

void Pool::worker(size_t thread) {
  const FloatState state;
  size_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen && !stop_; ++spin) relax();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_.load(std::memory_order_acquire) != seen; });
    }
    if (stop_) return;
    seen = generation_.load(std::memory_order_acquire);
    if (thread < taking_part_) take(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      done_.notify_one();
    }
  }
}

}  // namespace aos
