// The definition of every operation of the canonical arithmetic, in plain C++: docs/spec/07-inference.md, rules 0 to 8 and 10.
// binary32, one rounding per written operation, in the written order. Built with -ffp-contract=off; with contraction the
// self test fails. Everything else in this directory that computes is a faster way to the same bits.
#include <cmath>  // sqrtf only, which is correctly rounded; built with -fno-math-errno it is one instruction

#include "packed.h"

namespace aos {
namespace {

// Rule 0, lanes: the halving tree over 16 sums.
float halving_tree(float* lane) {
  for (size_t h = kRows / 2; h > 0; h /= 2)
    for (size_t i = 0; i < h; ++i) lane[i] = lane[i] + lane[i + h];
  return lane[0];
}

// Rule 1.
void quantise(const float* x, size_t n, uint8_t* tile, size_t width, size_t slot) {
  for (size_t b = 0; b < n / kBlock; ++b, x += kBlock, tile += kTileBlockBytes * width) {
    float largest = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) {
      const float magnitude = from_bits(to_bits(x[i]) & 0x7fffffffu);
      if (magnitude > largest) largest = magnitude;
    }
    float d = 0.0f, r = 0.0f;
    if (largest >= 0x1p-100f) {
      d = largest / 127.0f;
      r = 127.0f / largest;
    }
    int32_t sum = 0, first = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      // Adding 1.5·2^23 rounds to an integer, half to even, which the low bits then hold. (Masked: an x that is not
      // finite has trapped already, its place must only not be undefined.)
      const float shifted = x[i] * r + 0x1.8p23f;
      const auto q = static_cast<int8_t>(to_bits(shifted) & 0xff);
      reinterpret_cast<int8_t*>(tile)[kBlock * slot + i] = q;
      sum += -8 * q;
      if (i < kBlock / 2) first += -8 * q;
    }
    std::memcpy(tile + kTileSums * width + 4 * slot, &sum, 4);
    std::memcpy(tile + kTileHalfSums * width + 4 * slot, &first, 4);
    std::memcpy(tile + kTileScales * width + 4 * slot, &d, 4);
  }
}

// Rule 2, quantised weights: per block (d·D)·fp32(Σ s·w·q), plus (m·D)·fp32(n·Σ q) where the type has an offset; chunks of 8.
template <Type type, size_t width>
void quantised_product(const uint8_t* group, const void* tile, size_t blocks, float* y, size_t stride) {
  for (size_t t = 0; t < width; ++t)
    for (size_t row = 0; row < kRows; ++row) {
      PackedRow weights(type, group);
      const auto* x = static_cast<const uint8_t*>(tile);
      float sum = 0.0f, chunk = 0.0f;
      for (size_t b = 0; b < blocks; ++b, x += kTileBlockBytes * width) {
        const PackedBlock& w = weights.next();
        const auto* q = reinterpret_cast<const int8_t*>(x) + kBlock * t;
        float D;
        std::memcpy(&D, x + kTileScales * width + 4 * t, 4);
        int32_t isum = 0, qsum = 0;
        for (size_t i = 0; i < kBlock; ++i) {
          isum += w.factor(row, i) * w.weight(row, i) * q[i];
          qsum += q[i];
        }
        float term = (w.scale(row) * D) * static_cast<float>(isum);
        if (w.has_offset()) term = term + (w.offset(row) * D) * static_cast<float>(w.count(row) * qsum);
        chunk = chunk + term;
        if (b % kChunkBlocks == kChunkBlocks - 1 || b + 1 == blocks) {
          sum = sum + chunk;
          chunk = 0.0f;
        }
      }
      y[t * stride + row] = sum;
    }
}

// Rule 2, dense weights: products in chunks of 256.
template <Type type, size_t width>
void dense_product(const uint8_t* group, const void* tile, size_t blocks, float* y, size_t stride) {
  const auto* x = static_cast<const float*>(tile);
  const size_t columns = blocks * kBlock;
  for (size_t t = 0; t < width; ++t)
    for (size_t row = 0; row < kRows; ++row) {
      float sum = 0.0f, chunk = 0.0f;
      for (size_t i = 0; i < columns; ++i) {
        chunk = chunk + dense_weight(type, group, row, i) * x[width * i + t];
        if (i % kChunk == kChunk - 1 || i + 1 == columns) {
          sum = sum + chunk;
          chunk = 0.0f;
        }
      }
      y[t * stride + row] = sum;
    }
}

// Rule 10.
bool finite(const float* x, size_t n) {
  for (size_t i = 0; i < n; ++i)
    if ((to_bits(x[i]) & 0x7f800000u) == 0x7f800000u) return false;
  return true;
}

// Rule 3.
bool rms_norm(const float* x, const float* weight, size_t n, float eps, float* y) {
  float lane[kRows] = {};
  for (size_t i = 0; i < n; ++i) lane[i % kRows] = lane[i % kRows] + x[i] * x[i];
  const float s = halving_tree(lane);
  const float r = 1.0f / std::sqrt(s / static_cast<float>(n) + eps);
  for (size_t i = 0; i < n; ++i) y[i] = (x[i] * r) * weight[i];
  return finite(&s, 1) && finite(y, n);
}

// Rule 4.
void rope(float* x, const float* cos, const float* sin, size_t half, bool neighbours) {
  for (size_t i = 0; i < half; ++i) {
    float& a = x[neighbours ? 2 * i : i];
    float& b = x[neighbours ? 2 * i + 1 : i + half];
    const float x0 = a, x1 = b;
    a = x0 * cos[i] - x1 * sin[i];
    b = x0 * sin[i] + x1 * cos[i];
  }
}

// Rule 5. Saturates, then rounds to nearest even; NaN, which has trapped already, becomes -65504, never NaN.
void to_half(const float* x, size_t n, uint16_t* y) {
  for (size_t i = 0; i < n; ++i) {
    float v = x[i] > -65504.0f ? x[i] : -65504.0f;
    v = v < 65504.0f ? v : 65504.0f;
    const uint32_t bits = to_bits(v), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude < 0x38800000u) {
      // Below 2^-14: adding 0.5 rounds to a multiple of 2^-24, which the low bits then hold.
      half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    }
    y[i] = static_cast<uint16_t>(sign | half);
  }
}

// Rule 7.
float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 88.0f ? x : 88.0f;
  const float shifted = x * 0x1.715476p+0f + 0x1.8p+23f;
  const float n = shifted - 0x1.8p+23f;
  const float y = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;
  float p = 0x1.a0d2cep-13f;
  p = p * y + 0x1.6e879cp-10f;
  p = p * y + 0x1.11121p-7f;
  p = p * y + 0x1.555382p-5f;
  p = p * y + 0x1.555554p-3f;
  p = p * y + 0x1p-1f;
  p = p * (y * y) + y;
  p = p + 1.0f;
  return from_bits(to_bits(p) + ((to_bits(shifted) - 0x4b400000u) << 23));
}

void silu_product(const float* g, const float* u, size_t n, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] = (g[i] / (1.0f + exponential(-g[i]))) * u[i];
}

void exp_minus(const float* x, size_t n, float m, float* y) {
  for (size_t i = 0; i < n; ++i) y[i] = exponential(x[i] - m);
}

// Rule 6.
void scores(const float* q, size_t n, const uint16_t* keys, size_t tiles, size_t width, float* s, size_t stride) {
  for (size_t query = 0; query < n; ++query)
    for (size_t j = 0; j < kRows * tiles; ++j) {
      float sum = 0.0f;
      for (size_t i = 0; i < width; ++i)
        sum = sum + q[width * query + i] * widen(keys[(j / kRows * width + i) * kRows + j % kRows]);
      s[stride * query + j] = sum;
    }
}

float softmax(float* s, size_t count) {
  float largest = s[0];
  for (size_t j = 1; j < count; ++j)
    if (s[j] > largest) largest = s[j];
  float lane[kRows] = {};
  for (size_t j = 0; j < count; ++j) {
    s[j] = exponential(s[j] - largest);
    lane[j % kRows] = lane[j % kRows] + s[j];
  }
  for (size_t j = count; j % kRows != 0; ++j) s[j] = 0.0f;
  return halving_tree(lane);
}

void mix(const float* e, size_t stride, size_t n, const uint16_t* v, size_t count, size_t width, float* o) {
  for (size_t query = 0; query < n; ++query)
    for (size_t i = 0; i < width; ++i) {
      float chunk = 0.0f;
      for (size_t j = 0; j < count; ++j) chunk = chunk + e[stride * query + j] * widen(v[width * j + i]);
      o[width * query + i] = o[width * query + i] + chunk;
    }
}

void scale(float* x, size_t n, float factor) {
  for (size_t i = 0; i < n; ++i) x[i] = x[i] * factor;
}

// Rule 8.
void add(float* x, const float* o, size_t n) {
  for (size_t i = 0; i < n; ++i) x[i] = x[i] + o[i];
}

template <size_t width>
constexpr void fill(Kernels& k, size_t index) {
  k.product[static_cast<size_t>(Type::F32)][index] = dense_product<Type::F32, width>;
  k.product[static_cast<size_t>(Type::F16)][index] = dense_product<Type::F16, width>;
  k.product[static_cast<size_t>(Type::BF16)][index] = dense_product<Type::BF16, width>;
  k.product[static_cast<size_t>(Type::Q4_0)][index] = quantised_product<Type::Q4_0, width>;
  k.product[static_cast<size_t>(Type::Q4_1)][index] = quantised_product<Type::Q4_1, width>;
  k.product[static_cast<size_t>(Type::Q5_0)][index] = quantised_product<Type::Q5_0, width>;
  k.product[static_cast<size_t>(Type::Q5_1)][index] = quantised_product<Type::Q5_1, width>;
  k.product[static_cast<size_t>(Type::Q8_0)][index] = quantised_product<Type::Q8_0, width>;
  k.product[static_cast<size_t>(Type::Q4_K)][index] = quantised_product<Type::Q4_K, width>;
  k.product[static_cast<size_t>(Type::Q5_K)][index] = quantised_product<Type::Q5_K, width>;
  k.product[static_cast<size_t>(Type::Q6_K)][index] = quantised_product<Type::Q6_K, width>;
}

constexpr Kernels table() {
  Kernels k{"scalar", {}, quantise, rms_norm, rope, to_half, scores, softmax, mix, scale, silu_product, exp_minus, add, finite};
  fill<1>(k, 0);
  fill<4>(k, 1);
  fill<16>(k, 2);
  return k;
}

}  // namespace

constinit const Kernels kScalar = table();

}  // namespace aos
