// The vector twins of scalar.cpp, written once over the primitives of an instruction set. Included inside an anonymous
// namespace by avx2.cpp, avx512.cpp and neon.inc.h, which define:
//   F, I           kUnit binary32 / 32-bit integers; kUnit divides 16
//   load, store, set1, zero, add, sub, mul, div, at_least(x, low), at_most(x, high), largest_of
//   load_half, store_half, magnitude, max_of, to_int (half to even), to_float, quantised, bits arithmetic of exp
//   Bytes          kUnit x 4 bytes, and isum<...> (the exact integer sums of rule 2)
// A lane is a row, a key, a dimension or one of the 16 lanes of rule 0, so no order changes. Nothing here may call a
// function that another translation unit also instantiates (see packed.h).

constexpr size_t kParts = kRows / kUnit;

inline float tree(const F* lanes) {
  alignas(64) float lane[kRows];
  for (size_t p = 0; p < kParts; ++p) store(lane + kUnit * p, lanes[p]);
  for (size_t h = kRows / 2; h > 0; h /= 2)
    for (size_t i = 0; i < h; ++i) lane[i] = lane[i] + lane[i + h];
  return lane[0];
}

inline bool finite_scalar(float x) { return (to_bits(x) & 0x7f800000u) != 0x7f800000u; }

// Rule 10.
bool finite(const float* x, size_t n) {
  F largest = zero();
  size_t i = 0;
  bool good = true;
  for (; i + kUnit <= n; i += kUnit) largest = largest_pattern(largest, magnitude(load(x + i)));
  alignas(64) float lane[kUnit];
  store(lane, largest);
  for (size_t l = 0; l < kUnit; ++l) good = good && finite_scalar(lane[l]);
  for (; i < n; ++i) good = good && finite_scalar(x[i]);
  return good;
}

// Rule 3.
bool rms_norm(const float* x, const float* weight, size_t n, float eps, float* y) {
  F lanes[kParts];
  for (size_t p = 0; p < kParts; ++p) lanes[p] = zero();
  const size_t whole = n / kRows * kRows;
  for (size_t i = 0; i < whole; i += kRows)
    for (size_t p = 0; p < kParts; ++p) {
      const F v = load(x + i + kUnit * p);
      lanes[p] = add(lanes[p], mul(v, v));
    }
  if (whole < n) {
    alignas(64) float lane[kRows];
    for (size_t p = 0; p < kParts; ++p) store(lane + kUnit * p, lanes[p]);
    for (size_t i = whole; i < n; ++i) lane[i - whole] = lane[i - whole] + x[i] * x[i];
    for (size_t p = 0; p < kParts; ++p) lanes[p] = load(lane + kUnit * p);
  }
  const float s = tree(lanes);
  const float r = 1.0f / root(s / static_cast<float>(n) + eps);
  const F scale = set1(r);
  size_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
  for (; i < n; ++i) y[i] = (x[i] * r) * weight[i];
  return finite_scalar(s) && finite(y, n);
}

// Rule 4. The compiler may vectorise this; without contraction it cannot change a bit.
void rope(float* x, const float* cos, const float* sin, size_t half, bool neighbours) {
  if (neighbours) {
    for (size_t i = 0; i < half; ++i) {
      const float x0 = x[2 * i], x1 = x[2 * i + 1];
      x[2 * i] = x0 * cos[i] - x1 * sin[i];
      x[2 * i + 1] = x0 * sin[i] + x1 * cos[i];
    }
  } else {
    for (size_t i = 0; i < half; ++i) {
      const float x0 = x[i], x1 = x[i + half];
      x[i] = x0 * cos[i] - x1 * sin[i];
      x[i + half] = x0 * sin[i] + x1 * cos[i];
    }
  }
}

// Rule 5.
void to_half(const float* x, size_t n, uint16_t* y) {
  const F low = set1(-65504.0f), high = set1(65504.0f);
  size_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store_half(y + i, at_most(at_least(load(x + i), low), high));
  if (i < n) {
    alignas(64) float rest[kUnit] = {};
    uint16_t halves[kUnit];
    for (size_t l = 0; i + l < n; ++l) rest[l] = x[i + l];
    store_half(halves, at_most(at_least(load(rest), low), high));
    for (size_t l = 0; i + l < n; ++l) y[i + l] = halves[l];
  }
}

// Rule 7.
inline F exponential(F x) {
  x = at_most(at_least(x, set1(-87.0f)), set1(88.0f));
  const F rounder = set1(0x1.8p+23f);
  const F shifted = add(mul(x, set1(0x1.715476p+0f)), rounder);
  const F n = sub(shifted, rounder);
  const F y = sub(sub(x, mul(n, set1(0x1.63p-1f))), mul(n, set1(-0x1.bd0106p-13f)));
  F p = set1(0x1.a0d2cep-13f);
  p = add(mul(p, y), set1(0x1.6e879cp-10f));
  p = add(mul(p, y), set1(0x1.11121p-7f));
  p = add(mul(p, y), set1(0x1.555382p-5f));
  p = add(mul(p, y), set1(0x1.555554p-3f));
  p = add(mul(p, y), set1(0x1p-1f));
  p = add(mul(p, mul(y, y)), y);
  p = add(p, set1(1.0f));
  return add_exponent(p, shifted);
}

void silu_product(const float* g, const float* u, size_t n, float* y) {
  const F one = set1(1.0f);
  for (size_t i = 0; i < n; i += kUnit) {
    const F v = load(g + i);
    store(y + i, mul(div(v, add(one, exponential(negative(v)))), load(u + i)));
  }
}

void exp_minus(const float* x, size_t n, float m, float* y) {
  const F largest = set1(m);
  size_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store(y + i, exponential(sub(load(x + i), largest)));
  if (i < n) {
    alignas(64) float rest[kUnit] = {}, out[kUnit];
    for (size_t l = 0; i + l < n; ++l) rest[l] = x[i + l];
    store(out, exponential(sub(load(rest), largest)));
    for (size_t l = 0; i + l < n; ++l) y[i + l] = out[l];
  }
}

// Rule 6.
template <size_t queries, size_t tiles>
inline void score_tile(const float* q, const uint16_t* keys, size_t width, float* s, size_t stride) {
  F sum[queries][tiles * kParts];
  for (size_t a = 0; a < queries; ++a)
    for (size_t b = 0; b < tiles * kParts; ++b) sum[a][b] = zero();
  for (size_t i = 0; i < width; ++i) {
    F k[tiles * kParts];
    for (size_t t = 0; t < tiles; ++t)
      for (size_t p = 0; p < kParts; ++p) k[t * kParts + p] = load_half(keys + (t * width + i) * kRows + kUnit * p);
    for (size_t a = 0; a < queries; ++a) {
      const F v = set1(q[a * width + i]);
      for (size_t b = 0; b < tiles * kParts; ++b) sum[a][b] = add(sum[a][b], mul(v, k[b]));
    }
  }
  for (size_t a = 0; a < queries; ++a)
    for (size_t b = 0; b < tiles * kParts; ++b) store(s + a * stride + b * kUnit, sum[a][b]);
}

template <size_t queries, size_t tiles_at_once>
inline void score_rows(const float* q, const uint16_t* keys, size_t tiles, size_t width, float* s, size_t stride) {
  size_t t = 0;
  for (; t + tiles_at_once <= tiles; t += tiles_at_once)
    score_tile<queries, tiles_at_once>(q, keys + t * width * kRows, width, s + t * kRows, stride);
  for (; t < tiles; ++t) score_tile<queries, 1>(q, keys + t * width * kRows, width, s + t * kRows, stride);
}

void scores(const float* q, size_t n, const uint16_t* keys, size_t tiles, size_t width, float* s, size_t stride) {
  if constexpr (kUnit == 16) {
    for (; n >= 8; n -= 8, q += 8 * width, s += 8 * stride) score_rows<8, 2>(q, keys, tiles, width, s, stride);
    for (; n >= 4; n -= 4, q += 4 * width, s += 4 * stride) score_rows<4, 4>(q, keys, tiles, width, s, stride);
    for (; n >= 1; n -= 1, q += width, s += stride) score_rows<1, 8>(q, keys, tiles, width, s, stride);
  } else {
    for (; n >= 4; n -= 4, q += 4 * width, s += 4 * stride) score_rows<4, 1>(q, keys, tiles, width, s, stride);
    for (; n >= 1; n -= 1, q += width, s += stride) score_rows<1, 8 / kParts>(q, keys, tiles, width, s, stride);
  }
}

float softmax(float* s, size_t count) {
  float largest = s[0];
  size_t j = 0;
  if (count >= kUnit) {
    F most = load(s);
    for (j = kUnit; j + kUnit <= count; j += kUnit) most = at_least(load(s + j), most);
    alignas(64) float lane[kUnit];
    store(lane, most);
    for (size_t l = 0; l < kUnit; ++l)
      if (lane[l] > largest) largest = lane[l];
  }
  for (; j < count; ++j)
    if (s[j] > largest) largest = s[j];
  const F m = set1(largest);
  F lanes[kParts];
  for (size_t p = 0; p < kParts; ++p) lanes[p] = zero();
  const size_t whole = count / kRows * kRows;
  for (j = 0; j < whole; j += kRows)
    for (size_t p = 0; p < kParts; ++p) {
      const F e = exponential(sub(load(s + j + kUnit * p), m));
      store(s + j + kUnit * p, e);
      lanes[p] = add(lanes[p], e);
    }
  if (whole < count) {
    for (size_t p = 0; p < kParts; ++p) store(s + whole + kUnit * p, exponential(sub(load(s + whole + kUnit * p), m)));
    for (j = count; j % kRows != 0; ++j) s[j] = 0.0f;
    // Adding +0 is what a lane without a term does: no sum here can be -0.
    for (size_t p = 0; p < kParts; ++p) lanes[p] = add(lanes[p], load(s + whole + kUnit * p));
  }
  return tree(lanes);
}

template <size_t queries, size_t vectors>
inline void mix_tile(const float* e, size_t stride, const uint16_t* v, size_t count, size_t width, float* o) {
  F chunk[queries][vectors];
  for (size_t a = 0; a < queries; ++a)
    for (size_t b = 0; b < vectors; ++b) chunk[a][b] = zero();
  for (size_t j = 0; j < count; ++j) {
    F values[vectors];
    for (size_t b = 0; b < vectors; ++b) values[b] = load_half(v + width * j + kUnit * b);
    for (size_t a = 0; a < queries; ++a) {
      const F weight = set1(e[a * stride + j]);
      for (size_t b = 0; b < vectors; ++b) chunk[a][b] = add(chunk[a][b], mul(weight, values[b]));
    }
  }
  for (size_t a = 0; a < queries; ++a)
    for (size_t b = 0; b < vectors; ++b) {
      float* at = o + a * width + kUnit * b;
      store(at, add(load(at), chunk[a][b]));
    }
}

template <size_t queries, size_t vectors>
inline void mix_rows(const float* e, size_t stride, const uint16_t* v, size_t count, size_t width, float* o) {
  size_t i = 0;
  for (; i + kUnit * vectors <= width; i += kUnit * vectors)
    mix_tile<queries, vectors>(e, stride, v + i, count, width, o + i);
  for (; i < width; i += kUnit) mix_tile<queries, 1>(e, stride, v + i, count, width, o + i);
}

void mix(const float* e, size_t stride, size_t n, const uint16_t* v, size_t count, size_t width, float* o) {
  constexpr size_t several = kUnit == 16 ? 4 : 2;
  for (; n >= several; n -= several, e += several * stride, o += several * width)
    mix_rows<several, 4>(e, stride, v, count, width, o);
  for (; n >= 1; n -= 1, e += stride, o += width) mix_rows<1, 8>(e, stride, v, count, width, o);
}

void scale(float* x, size_t n, float factor) {
  const F f = set1(factor);
  size_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store(x + i, mul(load(x + i), f));
  for (; i < n; ++i) x[i] = x[i] * factor;
}

// Rule 8.
void add_to(float* x, const float* o, size_t n) {
  size_t i = 0;
  for (; i + kUnit <= n; i += kUnit) store(x + i, add(load(x + i), load(o + i)));
  for (; i < n; ++i) x[i] = x[i] + o[i];
}

// --- rule 2

constexpr size_t kUnitBytes = 4 * kUnit;

constexpr int bits_of(Type t) {
  return t == Type::Q8_0 ? 8 : t == Type::Q6_K ? 6 : t == Type::Q5_0 || t == Type::Q5_1 || t == Type::Q5_K ? 5 : 4;
}
constexpr bool k_type(Type t) { return t == Type::Q4_K || t == Type::Q5_K || t == Type::Q6_K; }
constexpr bool offset_in_block(Type t) { return t == Type::Q4_1 || t == Type::Q5_1; }
constexpr bool offset_in_header(Type t) { return t == Type::Q4_K || t == Type::Q5_K; }

// The weights and scales of one block, kUnit rows. `w[j]` holds columns 4j .. 4j + 3, not negative but for Q8_0.
template <Type type>
struct Block {
  Bytes w[8];
  F d, m, sc, sc1, count;

  inline __attribute__((always_inline)) Block(const uint8_t* header, const uint8_t* at, size_t part) {
    if constexpr (!k_type(type)) d = load_half(half_pointer(at, part));
    if constexpr (offset_in_block(type)) m = load_half(half_pointer(at + 32, part));
    if constexpr (k_type(type)) d = load_half(half_pointer(header, part));
    if constexpr (offset_in_header(type)) {
      m = negative(load_half(half_pointer(header + 32, part)));
      sc = bytes_to_float<false>(at + kUnit * part);
      count = bytes_to_float<false>(at + 16 + kUnit * part);
    }
    if constexpr (type == Type::Q6_K) {
      sc = bytes_to_float<true>(at + kUnit * part);
      sc1 = bytes_to_float<true>(at + 16 + kUnit * part);
    }
    const uint8_t* payload = at + (offset_in_block(type) ? 64 : 32) + kUnitBytes * part;
    if constexpr (bits_of(type) == 8) {
      for (size_t j = 0; j < 8; ++j) w[j] = load_bytes(payload + 64 * j);
    } else {
      for (size_t j = 0; j < 4; ++j) {
        const Bytes v = load_bytes(payload + 64 * j);
        w[j] = low_half(v);
        w[4 + j] = high_half(v);
      }
    }
    if constexpr (bits_of(type) == 5) {
      const Bytes high = load_bytes(payload + 256);
      w[0] = either(w[0], bit_to_16<0>(high));
      w[1] = either(w[1], bit_to_16<1>(high));
      w[2] = either(w[2], bit_to_16<2>(high));
      w[3] = either(w[3], bit_to_16<3>(high));
      w[4] = either(w[4], bit_to_16<4>(high));
      w[5] = either(w[5], bit_to_16<5>(high));
      w[6] = either(w[6], bit_to_16<6>(high));
      w[7] = either(w[7], bit_to_16<7>(high));
    }
    if constexpr (bits_of(type) == 6) {
      for (size_t u = 0; u < 2; ++u) {
        const Bytes high = load_bytes(payload + 256 + 64 * u);
        w[4 * u] = either(w[4 * u], pair_to_16<0>(high));
        w[4 * u + 1] = either(w[4 * u + 1], pair_to_16<1>(high));
        w[4 * u + 2] = either(w[4 * u + 2], pair_to_16<2>(high));
        w[4 * u + 3] = either(w[4 * u + 3], pair_to_16<3>(high));
      }
    }
  }

  static const uint16_t* half_pointer(const uint8_t* at, size_t part) {
    return reinterpret_cast<const uint16_t*>(at) + kUnit * part;
  }

  // The block's term for position t of a tile's block x of `width` positions.
  inline __attribute__((always_inline)) F term(const uint8_t* x, size_t width, size_t t) const {
    const auto* q = reinterpret_cast<const int32_t*>(x) + 8 * t;
    const int32_t* sums = reinterpret_cast<const int32_t*>(x + kTileSums * width) + t;
    const float D = reinterpret_cast<const float*>(x + kTileScales * width)[t];
    if constexpr (type == Type::Q6_K) {
      const int32_t first = reinterpret_cast<const int32_t*>(x + kTileHalfSums * width)[t];
      const F i0 = to_float(isum<6, 4, true>(w, q, first * 4));
      const F i1 = to_float(isum<6, 4, true>(w + 4, q + 4, (*sums - first) * 4));
      // Integers below 2^24: these products and this sum are exact.
      return mul(mul(d, set1(D)), add(mul(sc, i0), mul(sc1, i1)));
    } else if constexpr (offset_in_header(type)) {
      const F i = mul(sc, to_float(isum<bits_of(type), 8, false>(w, q, 0)));
      const F n = mul(count, set1(static_cast<float>(-(*sums >> 3))));
      return add(mul(mul(d, set1(D)), i), mul(mul(m, set1(D)), n));
    } else if constexpr (offset_in_block(type)) {
      const F i = to_float(isum<bits_of(type), 8, false>(w, q, 0));
      const F n = set1(static_cast<float>(-(*sums >> 3)));
      return add(mul(mul(d, set1(D)), i), mul(mul(m, set1(D)), n));
    } else if constexpr (type == Type::Q4_0) {
      return mul(mul(d, set1(D)), to_float(isum_corrected(w, q, sums)));
    } else {
      constexpr int offset = type == Type::Q8_0 ? 16 : 2;  // times 8
      return mul(mul(d, set1(D)), to_float(isum<bits_of(type), 8, true>(w, q, *sums * offset)));
    }
  }
};

template <Type type, size_t width, size_t parts>
inline void quantised_part(const uint8_t* group, const uint8_t* x, size_t blocks, float* y, size_t stride, size_t first) {
  constexpr Layout layout = layout_of(type);
  F sum[parts][width], chunk[parts][width];
  for (size_t p = 0; p < parts; ++p)
    for (size_t t = 0; t < width; ++t) sum[p][t] = zero();
  for (size_t b = 0; b < blocks;) {
    const uint8_t* header = group;
    group += layout.header_bytes;
    const size_t end = b + kChunkBlocks < blocks ? b + kChunkBlocks : blocks;
    for (size_t p = 0; p < parts; ++p)
      for (size_t t = 0; t < width; ++t) chunk[p][t] = zero();
    for (; b < end; ++b, group += layout.block_bytes, x += kTileBlockBytes * width) {
      if constexpr (width == 1)
        for (size_t line = 0; line < layout.block_bytes; line += 64) __builtin_prefetch(group + kAhead + line);
      for (size_t p = 0; p < parts; ++p) {
        const Block<type> block(header, group, first + p);
#pragma GCC unroll 16
        for (size_t t = 0; t < width; ++t) chunk[p][t] = add(chunk[p][t], block.term(x, width, t));
      }
    }
    for (size_t p = 0; p < parts; ++p)
      for (size_t t = 0; t < width; ++t) sum[p][t] = add(sum[p][t], chunk[p][t]);
  }
  for (size_t p = 0; p < parts; ++p)
    for (size_t t = 0; t < width; ++t) store(y + t * stride + kUnit * (first + p), sum[p][t]);
}

template <Type type, size_t width>
void quantised_product(const uint8_t* group, const void* tile, size_t blocks, float* y, size_t stride) {
  const auto* x = static_cast<const uint8_t*>(tile);
  if constexpr (width == 1 && kParts <= 2) {
    quantised_part<type, width, kParts>(group, x, blocks, y, stride, 0);
  } else {
    for (size_t p = 0; p < kParts; ++p) quantised_part<type, width, 1>(group, x, blocks, y, stride, p);
  }
}

template <Type type>
inline F dense_load(const uint8_t* at) {
  if constexpr (type == Type::F32) return load(reinterpret_cast<const float*>(at));
  if constexpr (type == Type::F16) return load_half(reinterpret_cast<const uint16_t*>(at));
  return load_bfloat(reinterpret_cast<const uint16_t*>(at));
}

template <Type type, size_t width, size_t parts>
inline void dense_part(const uint8_t* group, const float* x, size_t columns, float* y, size_t stride, size_t first) {
  constexpr size_t size = type == Type::F32 ? 4 : 2;
  F sum[parts][width], chunk[parts][width];
  for (size_t p = 0; p < parts; ++p)
    for (size_t t = 0; t < width; ++t) sum[p][t] = zero();
  for (size_t i = 0; i < columns;) {
    const size_t end = i + kChunk < columns ? i + kChunk : columns;
    for (size_t p = 0; p < parts; ++p)
      for (size_t t = 0; t < width; ++t) chunk[p][t] = zero();
    for (; i < end; ++i) {
      const uint8_t* at = group + size * kRows * i;
      if constexpr (width == 1) __builtin_prefetch(at + kAhead);
      for (size_t p = 0; p < parts; ++p) {
        const F w = dense_load<type>(at + size * kUnit * (first + p));
#pragma GCC unroll 16
        for (size_t t = 0; t < width; ++t) chunk[p][t] = add(chunk[p][t], mul(w, set1(x[width * i + t])));
      }
    }
    for (size_t p = 0; p < parts; ++p)
      for (size_t t = 0; t < width; ++t) sum[p][t] = add(sum[p][t], chunk[p][t]);
  }
  for (size_t p = 0; p < parts; ++p)
    for (size_t t = 0; t < width; ++t) store(y + t * stride + kUnit * (first + p), sum[p][t]);
}

template <Type type, size_t width>
void dense_product(const uint8_t* group, const void* tile, size_t blocks, float* y, size_t stride) {
  const auto* x = static_cast<const float*>(tile);
  if constexpr (width == 1) {
    dense_part<type, width, kParts>(group, x, blocks * kBlock, y, stride, 0);
  } else {
    for (size_t p = 0; p < kParts; ++p) dense_part<type, width, 1>(group, x, blocks * kBlock, y, stride, p);
  }
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

constexpr Kernels table(const char* name) {
  Kernels k{name, {}, quantise, rms_norm, rope, to_half, scores, softmax, mix, scale, silu_product, exp_minus, add_to, finite};
  fill<1>(k, 0);
  fill<4>(k, 1);
  fill<16>(k, 2);
  return k;
}
