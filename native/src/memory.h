// Large zeroed memory, in huge pages where the system offers them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace aos {

class Memory {
 public:
  Memory() = default;
  // Throws Error "engine.memory".
  explicit Memory(size_t size);
  ~Memory();
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace aos
