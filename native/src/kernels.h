// What the forward pass asks of an instruction set, and how weights and activations lie in memory.
// scalar.cpp defines every operation (docs/spec/07-inference.md); avx2.cpp, avx512.cpp, neon.cpp and neon_dot.cpp give the same bits.
#pragma once
#include <cstddef>
#include <cstdint>

namespace aos {

constexpr size_t kRows = 16;        // rows of a weight group: SIMD lane = row
constexpr size_t kBlock = 32;       // columns of a block
constexpr size_t kChunk = 256;      // terms of a chunk (rules 2, 6 and 9)
constexpr size_t kChunkBlocks = 8;  // blocks of a chunk
constexpr size_t kQueries = 8;      // queries of an attention tile, at most

// The numbers are GGUF's.
enum class Type : uint32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30,
};
constexpr size_t kTypes = 31;  // one more than the largest number

// A packed matrix is a sequence of groups of 16 rows; the rows of a last group that do not exist are zero.
// A group is a sequence of chunks of 256 columns: a header (K types only), then 8 blocks of 32 columns (fewer at the end).
//   header  Q4_K, Q5_K: 16 binary16 d, 16 binary16 dmin; Q6_K: 16 binary16 d
//   block   scales, then payload:
//     Q4_0, Q5_0, Q8_0  16 binary16 d
//     Q4_1, Q5_1        16 binary16 d, 16 binary16 m
//     Q4_K, Q5_K        16 u8 sc, 16 u8 m
//     Q6_K              16 i8 sc of columns 0..15, 16 i8 sc of columns 16..31
//     payload, 4 bits   4 x 64 bytes; byte (j, row, k) holds column 4j + k low, column 16 + 4j + k high
//     5 bits            the 4 bits, then 64 bytes; bit j of byte (row, k) is bit 4 of column 4j + k
//     6 bits            the 4 bits, then 2 x 64 bytes; bits 2j', 2j'+1 of byte (u, row, k) are bits 4, 5 of column 4(4u + j') + k
//     8 bits            8 x 64 signed bytes (j, row, k)
//   F32, F16, BF16: 32 columns of 16 values.
struct Layout {
  size_t file_columns;  // columns of a block in the file
  size_t file_bytes;    // bytes of a block in the file
  size_t header_bytes;
  size_t block_bytes;
  bool dense;           // activations are not quantised
};

static constexpr bool known_type(uint32_t t) {
  return t <= 3 || (t >= 6 && t <= 8) || (t >= 12 && t <= 14) || t == 30;
}

static constexpr Layout layout_of(Type type) {
  switch (type) {
    case Type::F32: return {1, 4, 0, 2048, true};
    case Type::F16: return {1, 2, 0, 1024, true};
    case Type::BF16: return {1, 2, 0, 1024, true};
    case Type::Q4_0: return {32, 18, 0, 32 + 256, false};
    case Type::Q4_1: return {32, 20, 0, 64 + 256, false};
    case Type::Q5_0: return {32, 22, 0, 32 + 320, false};
    case Type::Q5_1: return {32, 24, 0, 64 + 320, false};
    case Type::Q8_0: return {32, 34, 0, 32 + 512, false};
    case Type::Q4_K: return {256, 144, 64, 32 + 256, false};
    case Type::Q5_K: return {256, 176, 64, 32 + 320, false};
    case Type::Q6_K: return {256, 210, 32, 32 + 384, false};
  }
  return {0, 0, 0, 0, false};
}

static constexpr size_t group_bytes(Type type, size_t columns) {
  const Layout l = layout_of(type);
  const size_t blocks = columns / kBlock;
  return blocks * l.block_bytes + (blocks + kChunkBlocks - 1) / kChunkBlocks * l.header_bytes;
}

// Activations lie in tiles of 1, 4 or 16 positions; what a position of a last tile lacks is zero.
//   quantised: per block of 32 columns: width x 32 int8 q | width x int32 -8·Σq | width x int32 -8·Σ of the first 16 q |
//              width x float D
//   dense: per column, width floats
constexpr size_t kTileWidths[3] = {1, 4, 16};
constexpr size_t kTileSums = 32, kTileHalfSums = 36, kTileScales = 40;  // offsets, times width
constexpr size_t kTileBlockBytes = 44;                                 // per position and block

struct Kernels {
  const char* name;

  // Rule 2. `group` is one packed group, y[t * stride + row] the output of position t of the tile.
  using Product = void (*)(const uint8_t* group, const void* tile, size_t blocks, float* y, size_t stride);
  Product product[kTypes][3];

  // Rule 1. Quantises n values (a multiple of 32) into place `slot` of a tile of `width` positions.
  void (*quantise)(const float* x, size_t n, uint8_t* tile, size_t width, size_t slot);
  // Rule 3. False where the sum or an output is not finite.
  bool (*rms_norm)(const float* x, const float* weight, size_t n, float eps, float* y);
  // Rule 4. `half` pairs of one head in place; neighbours (2i, 2i + 1), or halves (i, i + half).
  void (*rope)(float* x, const float* cos, const float* sin, size_t half, bool neighbours);
  // Rule 5.
  void (*to_half)(const float* x, size_t n, uint16_t* y);
  // Rule 6, scores of n queries [n][width], already scaled, against `tiles` tiles of 16 keys [tile][width][16].
  void (*scores)(const float* q, size_t n, const uint16_t* keys, size_t tiles, size_t width, float* s, size_t stride);
  // Rule 6: s[0 .. count) become e; the rest of the last 16 becomes +0. Returns S. s is padded to a multiple of 16.
  float (*softmax)(float* s, size_t count);
  // Rule 6, one chunk: o[q] += Σ e[q][j]·v[j] over `count` positions; v [count][width], o [n][width], width a multiple of 16.
  void (*mix)(const float* e, size_t stride, size_t n, const uint16_t* v, size_t count, size_t width, float* o);
  void (*scale)(float* x, size_t n, float factor);
  // Rule 7. y = (g / (1 + exp(-g)))·u.
  void (*silu_product)(const float* g, const float* u, size_t n, float* y);
  // Rule 7. y = exp(x - m).
  void (*exp_minus)(const float* x, size_t n, float m, float* y);
  // Rule 8, residual and bias: x = x + o.
  void (*add)(float* x, const float* o, size_t n);
  // Rule 10.
  bool (*finite)(const float* x, size_t n);
};

extern const Kernels kScalar;
#if defined(AOS_AVX)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif
#if defined(AOS_NEON)
extern const Kernels kNeon;
extern const Kernels kNeonDot;
#endif

}  // namespace aos
