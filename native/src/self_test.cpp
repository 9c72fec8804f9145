#include "self_test.h"

#include <cstring>
#include <vector>

#include "cpu.h"
#include "error.h"
#include "matrix.h"

namespace aos {
namespace {

// What the definition gives; tests/unit/test_engine_native.py compares the same operations with the reference engine.
constexpr char kExpected[] = "d156603b088cbbf7dde171fbfc2a21cb1448279252b573144fa2048879c75382";

class Numbers {
 public:
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }
  // About -2 .. 2, with all 24 bits in use.
  float real() { return (static_cast<float>(next() & 0xffffff) - 8388607.5f) * 0x1p-22f; }
  std::vector<float> reals(size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = real();
    return out;
  }
  uint16_t half() { return static_cast<uint16_t>(0x2800 | (next() & 0x87ff)); }

 private:
  uint64_t state_ = 1;
};

class Hash {
 public:
  template <class T>
  void add(const std::vector<T>& values) { hash_.update(values.data(), sizeof(T) * values.size()); }
  Digest finish() { return hash_.finish(); }

 private:
  Sha256 hash_;
};

std::vector<uint8_t> file_block(Type type, Numbers& numbers) {
  const Layout layout = layout_of(type);
  std::vector<uint8_t> out(layout.file_bytes);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(numbers.next());
  const auto put = [&](size_t at) {
    const uint16_t half = numbers.half();
    std::memcpy(out.data() + at, &half, 2);
  };
  if (type == Type::F32) {
    const float x = numbers.real();
    std::memcpy(out.data(), &x, 4);
  } else if (type == Type::BF16) {
    const float x = numbers.real();
    std::memcpy(out.data(), reinterpret_cast<const uint8_t*>(&x) + 2, 2);
  } else if (type == Type::Q6_K) {
    put(208);
  } else {
    put(0);
    if (type == Type::Q4_1 || type == Type::Q5_1 || type == Type::Q4_K || type == Type::Q5_K) put(2);
  }
  return out;
}

void products(const Kernels& kernels, Type type, Numbers& numbers, Hash& hash) {
  const Layout layout = layout_of(type);
  // Two chunks, the second short where the type allows it.
  const size_t columns = layout.file_columns == kChunk ? 2 * kChunk : kChunk + 3 * kBlock, rows = kRows, blocks = columns / kBlock;
  std::vector<uint8_t> file;
  for (size_t i = 0; i < rows * columns / layout.file_columns; ++i) {
    const std::vector<uint8_t> block = file_block(type, numbers);
    file.insert(file.end(), block.begin(), block.end());
  }
  Pool pool(1);
  const Matrix matrix(pool, static_cast<uint32_t>(type), rows, columns, file.data(), file.size());
  for (size_t index = 0; index < 3; ++index) {
    const size_t width = kTileWidths[index];
    std::vector<uint8_t> quantised(layout.dense ? 0 : width * blocks * kTileBlockBytes);
    std::vector<float> dense(layout.dense ? width * columns : 0), y(width * rows);
    for (size_t t = 0; t < width; ++t) {
      const std::vector<float> x = numbers.reals(columns);
      if (!layout.dense) kernels.quantise(x.data(), columns, quantised.data(), width, t);
      for (size_t i = 0; i < columns && layout.dense; ++i) dense[width * i + t] = x[i];
    }
    const void* tile = layout.dense ? static_cast<const void*>(dense.data()) : quantised.data();
    kernels.product[static_cast<size_t>(type)][index](matrix.group(0), tile, blocks, y.data(), rows);
    hash.add(quantised);
    hash.add(y);
  }
}

}  // namespace

Digest self_digest(const Kernels& kernels) {
  const FloatState state;
  Numbers numbers;
  Hash hash;
  for (const Type type : {Type::F32, Type::F16, Type::BF16, Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q5_1, Type::Q8_0, Type::Q4_K,
                          Type::Q5_K, Type::Q6_K})
    products(kernels, type, numbers, hash);

  const size_t n = 5 * kRows + 3;  // not whole registers
  std::vector<float> x = numbers.reals(n), y(n);
  kernels.rms_norm(x.data(), numbers.reals(n).data(), n, 1e-5f, y.data());
  hash.add(y);
  kernels.exp_minus(x.data(), n, 1.5f, y.data());
  hash.add(y);
  std::vector<uint16_t> halves(n);
  for (float& v : x) v = v * 0x1p-14f;  // subnormal halves too
  kernels.to_half(x.data(), n, halves.data());
  hash.add(halves);
  const size_t whole = 4 * kRows;
  std::vector<float> up = numbers.reals(whole), gate = numbers.reals(whole);
  kernels.silu_product(gate.data(), up.data(), whole, gate.data());
  hash.add(gate);
  for (const bool neighbours : {true, false}) {
    // One after the other: compilers differ in the order of a call's arguments.
    const std::vector<float> sin = numbers.reals(16), cos = numbers.reals(16);
    kernels.rope(up.data(), cos.data(), sin.data(), 16, neighbours);
    hash.add(up);
  }

  // 7 queries of 24 dimensions over 37 keys.
  const size_t queries = 7, width = 24, padded = 2 * kRows, count = 37, tiles = 3, stride = tiles * kRows;
  std::vector<float> q = numbers.reals(queries * width), s(queries * stride), o(queries * padded, 0.0f);
  std::vector<uint16_t> k(tiles * width * kRows), v(count * padded);
  for (uint16_t& half : k) half = static_cast<uint16_t>(numbers.half() + 0x800);
  for (uint16_t& half : v) half = numbers.half();
  kernels.scores(q.data(), queries, k.data(), tiles, width, s.data(), stride);
  hash.add(s);
  std::vector<float> sums;
  for (size_t query = 0; query < queries; ++query) sums.push_back(kernels.softmax(s.data() + query * stride, count));
  hash.add(sums);
  kernels.mix(s.data(), stride, queries, v.data(), count, padded, o.data());
  hash.add(o);
  kernels.add(o.data(), q.data(), q.size());
  kernels.scale(o.data(), o.size(), 0.3f);
  hash.add(o);
  return hash.finish();
}

namespace {

// Every way to hash many messages against one message after the other, which self_digest has shown to be right.
void test_hashes(Numbers& numbers) {
  constexpr size_t kCount = 21;  // more than sixteen lanes, and a rest
  std::vector<uint8_t> bytes(kCount * 200);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(numbers.next());
  for (const Sha256Lanes& way : sha256_lanes())
    for (const size_t prefix : {0, 1, 22, 70})
      for (const size_t size : {1, 33, 55, 64, 144, 200}) {
        std::vector<Digest> digests(kCount);
        std::vector<const uint8_t*> messages;
        std::vector<Digest*> out;
        for (size_t i = 0; i < kCount; ++i) messages.push_back(bytes.data() + i * size), out.push_back(&digests[i]);
        sha256_many(way, bytes.data(), prefix, messages.data(), size, kCount, out.data());
        for (size_t i = 0; i < kCount; ++i) {
          Sha256 h;
          h.update(bytes.data(), prefix);
          h.update(messages[i], size);
          if (h.finish() != digests[i]) throw Error("engine.self_test", std::string("the way '") + way.name + "' to hash gives other bits");
        }
      }
}

}  // namespace

void self_test(const Kernels& kernels) {
  std::string text;
  for (const uint8_t byte : self_digest(kernels)) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  if (text != kExpected)
    throw Error("engine.self_test", std::string("the ") + kernels.name + " build of the engine gives other bits (" + text + ")");
  Numbers numbers;
  test_hashes(numbers);
}

}  // namespace aos
