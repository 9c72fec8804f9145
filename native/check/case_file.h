// Models and runs as scripts/native_check.py writes them: little-endian numbers, lengths before what they count.
#pragma once
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace aos::check {

class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error("cannot read " + path);
    data_.assign(std::istreambuf_iterator<char>(in), {});
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  template <class T>
  std::vector<T> array() {
    std::vector<T> out(number<uint64_t>());
    if (!out.empty()) std::memcpy(out.data(), take(sizeof(T) * out.size()), sizeof(T) * out.size());
    return out;
  }
  std::string text() {
    const std::vector<char> raw = array<char>();
    return {raw.begin(), raw.end()};
  }
  bool more() const { return at_ < data_.size(); }

 private:
  const char* take(size_t size) {
    if (size > data_.size() - at_) throw std::runtime_error("the case file ends early");
    at_ += size;
    return data_.data() + at_ - size;
  }

  std::vector<char> data_;
  size_t at_ = 0;
};

}  // namespace aos::check
