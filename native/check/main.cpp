// Checks a build of the engine without Python, for processors that only an emulator has here and for sanitizers:
// the self-test, every operation against the scalar definition on random inputs of odd sizes, and whole runs of models
// against the state roots of the vectors. Exit status 1 and a line for the first difference.
#include <algorithm>
#include <cstdio>
#include <random>
#include <span>

#include "batch.h"
#include "case_file.h"
#include "cpu.h"
#include "error.h"
#include "leaf.h"
#include "matrix.h"
#include "model.h"
#include "run.h"
#include "self_test.h"

namespace aos::check {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  size_t below(size_t n) { return engine_() % n; }
  // Mostly of ordinary size; sometimes subnormal, tiny, huge or zero.
  float real() {
    const auto fraction = static_cast<float>(static_cast<int32_t>(engine_() & 0xffffff) - 0x800000);
    switch (below(16)) {
      case 0: return fraction * 0x1p-149f;
      case 1: return fraction * 0x1p-120f;
      case 2: return fraction * 0x1p10f;
      case 3: return below(2) == 0 ? 0.0f : -0.0f;
      default: return fraction * 0x1p-22f;
    }
  }
  std::vector<float> reals(size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = real();
    return out;
  }
  std::vector<float> moderate(size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = static_cast<float>(static_cast<int32_t>(engine_() & 0xffffff) - 0x800000) * 0x1p-21f;
    return out;
  }
  uint16_t half() {
    const auto bits = static_cast<uint16_t>(engine_());
    return (bits & 0x7c00) == 0x7c00 ? static_cast<uint16_t>(bits & 0xbfff) : bits;
  }
  uint8_t byte() { return static_cast<uint8_t>(engine_()); }

 private:
  std::mt19937_64 engine_;
};

template <class T>
void same(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  if (a.size() != b.size() || (!a.empty() && std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) != 0)) fail(what);
}

void put_half(std::vector<uint8_t>& block, size_t at, uint16_t half) { std::memcpy(block.data() + at, &half, 2); }

std::vector<uint8_t> random_matrix(Type type, size_t rows, size_t columns, Random& random) {
  const Layout layout = layout_of(type);
  std::vector<uint8_t> file;
  for (size_t i = 0; i < rows * columns / layout.file_columns; ++i) {
    std::vector<uint8_t> block(layout.file_bytes);
    for (uint8_t& byte : block) byte = random.byte();
    if (type == Type::F32) {
      const float x = random.real();
      std::memcpy(block.data(), &x, 4);
    } else if (type == Type::BF16) {
      const float x = random.real();
      std::memcpy(block.data(), reinterpret_cast<const uint8_t*>(&x) + 2, 2);
    } else {
      put_half(block, type == Type::Q6_K ? 208 : 0, random.half());
      if (type == Type::Q4_1 || type == Type::Q5_1 || type == Type::Q4_K || type == Type::Q5_K) put_half(block, 2, random.half());
    }
    file.insert(file.end(), block.begin(), block.end());
  }
  return file;
}

constexpr Type kAllTypes[] = {Type::F32,  Type::F16,  Type::BF16, Type::Q4_0, Type::Q4_1, Type::Q5_0,
                              Type::Q5_1, Type::Q8_0, Type::Q4_K, Type::Q5_K, Type::Q6_K};

void check_product(const Kernels& k, Type type, Random& random) {
  const Layout layout = layout_of(type);
  const size_t columns = layout.file_columns == kChunk ? kChunk * (1 + random.below(3)) : kBlock * (1 + random.below(19));
  const size_t rows = 1 + random.below(3 * kRows);
  const std::vector<uint8_t> file = random_matrix(type, rows, columns, random);
  Pool pool(1);
  const Matrix matrix(pool, static_cast<uint32_t>(type), rows, columns, file.data(), file.size());
  for (const size_t positions : {size_t{1}, 1 + random.below(40)}) {
    std::vector<float> x;
    for (size_t p = 0; p < positions; ++p) {
      const std::vector<float> row = random.below(4) == 0 ? random.reals(columns) : random.moderate(columns);
      x.insert(x.end(), row.begin(), row.end());
    }
    const auto product = [&](const Kernels& kernels) {
      Tiles tiles;
      tiles.begin(positions, columns, !matrix.dense(), matrix.dense());
      for (size_t p = 0; p < positions; ++p) tiles.put(kernels, p, x.data() + p * columns);
      std::vector<float> padded(Tiles::padded(positions) * matrix.padded_rows()), y;
      tiles.multiply(pool, kernels, {{&matrix, padded.data()}});
      for (size_t p = 0; p < positions; ++p)
        y.insert(y.end(), padded.begin() + p * matrix.padded_rows(), padded.begin() + p * matrix.padded_rows() + rows);
      // A sum that overflows traps the run; what NaN it became is no part of the definition.
      for (float& v : y)
        if (!kScalar.finite(&v, 1)) v = 0.0f;
      return y;
    };
    same(product(kScalar), product(k), std::string("product of type ") + std::to_string(static_cast<uint32_t>(type)));
  }
}

void check_operations(const Kernels& k, Random& random) {
  const size_t n = 1 + random.below(200);
  const std::vector<float> x = random.reals(n), w = random.moderate(n), small = random.moderate(n);
  std::vector<float> a(n), b(n);
  if (kScalar.rms_norm(small.data(), w.data(), n, 1e-5f, a.data()) != k.rms_norm(small.data(), w.data(), n, 1e-5f, b.data()))
    fail("rms_norm's verdict");
  same(a, b, "rms_norm");
  std::vector<uint16_t> ha(n), hb(n);
  kScalar.to_half(x.data(), n, ha.data());
  k.to_half(x.data(), n, hb.data());
  same(ha, hb, "to_half");
  const float m = random.moderate(1)[0];
  kScalar.exp_minus(x.data(), n, m, a.data());
  k.exp_minus(x.data(), n, m, b.data());
  same(a, b, "exp_minus");
  a = x, b = x;
  kScalar.add(a.data(), w.data(), n);
  k.add(b.data(), w.data(), n);
  same(a, b, "add");
  kScalar.scale(a.data(), n, m);
  k.scale(b.data(), n, m);
  same(a, b, "scale");
  for (const uint32_t bits : {0u, 0x7f800000u, 0xff800000u, 0x7fc00001u}) {
    std::vector<float> odd = small;
    if (bits != 0) std::memcpy(&odd[random.below(n)], &bits, 4);
    if (kScalar.finite(odd.data(), n) != k.finite(odd.data(), n)) fail("finite");
  }
  const size_t whole = kRows * (1 + random.below(20));
  const std::vector<float> gate = random.reals(whole), up = random.moderate(whole);
  a.assign(whole, 0.0f), b = a;
  kScalar.silu_product(gate.data(), up.data(), whole, a.data());
  k.silu_product(gate.data(), up.data(), whole, b.data());
  same(a, b, "silu_product");

  const size_t half = 1 + random.below(70);
  const std::vector<float> cos = random.moderate(half), sin = random.moderate(half);
  for (const bool neighbours : {true, false}) {
    a = random.reals(2 * half), b = a;
    kScalar.rope(a.data(), cos.data(), sin.data(), half, neighbours);
    k.rope(b.data(), cos.data(), sin.data(), half, neighbours);
    same(a, b, "rope");
  }

  const size_t blocks = 1 + random.below(9), width_index = random.below(3), width = kTileWidths[width_index];
  std::vector<uint8_t> ta(blocks * width * kTileBlockBytes), tb(ta.size());
  for (size_t slot = 0; slot < width; ++slot) {
    const std::vector<float> row = random.below(2) == 0 ? random.reals(blocks * kBlock) : random.moderate(blocks * kBlock);
    kScalar.quantise(row.data(), row.size(), ta.data(), width, slot);
    k.quantise(row.data(), row.size(), tb.data(), width, slot);
  }
  same(ta, tb, "quantise");
}

void check_attention(const Kernels& k, Random& random) {
  const size_t queries = 1 + random.below(kQueries), width = 1 + random.below(140), padded = (width + kRows - 1) / kRows * kRows;
  const size_t count = 1 + random.below(kChunk), tiles = (count + kRows - 1) / kRows, stride = tiles * kRows;
  const std::vector<float> q = random.moderate(queries * width);
  std::vector<uint16_t> keys(tiles * width * kRows), values(count * padded);
  for (uint16_t& half : keys) half = static_cast<uint16_t>(random.half() & 0xbfff);
  for (uint16_t& half : values) half = static_cast<uint16_t>(random.half() & 0xbfff);
  std::vector<float> a(queries * stride), b(a.size()), oa(queries * padded, 0.0f), ob(oa);
  kScalar.scores(q.data(), queries, keys.data(), tiles, width, a.data(), stride);
  k.scores(q.data(), queries, keys.data(), tiles, width, b.data(), stride);
  same(a, b, "scores");
  for (size_t query = 0; query < queries; ++query) {
    const float sa = kScalar.softmax(a.data() + query * stride, count), sb = k.softmax(b.data() + query * stride, count);
    same(std::vector<float>{sa}, {sb}, "softmax's sum");
  }
  same(a, b, "softmax");
  kScalar.mix(a.data(), stride, queries, values.data(), count, padded, oa.data());
  k.mix(b.data(), stride, queries, values.data(), count, padded, ob.data());
  same(oa, ob, "mix");
}

// RFC 9162, 2.1.1, as it is written.
Digest rfc_root(const Digest* leaves, size_t count) {
  if (count == 1) return leaves[0];
  size_t left = 1;
  while (2 * left < count) left *= 2;
  const Digest nodes[2] = {rfc_root(leaves, left), rfc_root(leaves + left, count - left)};
  Sha256 h;
  h.update("\1", 1);
  h.update(nodes, sizeof nodes);
  return h.finish();
}

// Every way to hash many messages, and the engine's choice among them, against one message after the other; roots side by side.
void check_hashes(Random& random) {
  const size_t prefix = random.below(150), size = 1 + random.below(300), count = 1 + random.below(40);
  std::vector<uint8_t> bytes(prefix + count * size);
  for (uint8_t& byte : bytes) byte = random.byte();
  std::vector<const uint8_t*> messages;
  std::vector<Digest> expected(count), digests(count);
  std::vector<Digest*> out;
  for (size_t i = 0; i < count; ++i) {
    messages.push_back(bytes.data() + prefix + i * size);
    out.push_back(&digests[i]);
    Sha256 h;
    h.update(bytes.data(), prefix);
    h.update(messages[i], size);
    expected[i] = h.finish();
  }
  for (const Sha256Lanes& way : sha256_lanes()) {
    digests.assign(count, {});
    sha256_many(way, bytes.data(), prefix, messages.data(), size, count, out.data());
    same(expected, digests, std::string("hashes, ") + way.name);
  }
  digests.assign(count, {});
  sha256_many(bytes.data(), prefix, messages.data(), size, count, out.data());
  same(expected, digests, "hashes");
  const size_t trees = 1 + random.below(20);
  std::vector<Digest> level;
  for (size_t tree = 0; tree < trees; ++tree) {
    for (Digest& leaf : digests) leaf[0] = static_cast<uint8_t>(tree);
    level.insert(level.end(), digests.begin(), digests.end());
  }
  const std::vector<Digest> leaves = level;
  tree_roots(level.data(), trees, count);
  for (size_t tree = 0; tree < trees; ++tree)
    if (level[tree * count] != rfc_root(leaves.data() + tree * count, count)) fail("roots side by side");
  std::vector<Digest> tiles;
  for (size_t at = 0; at < bytes.size(); at += 64) {
    Sha256 h;
    h.update("", 1);
    h.update(bytes.data() + at, std::min<size_t>(64, bytes.size() - at));
    tiles.push_back(h.finish());
  }
  if (part_root({bytes.data(), bytes.size(), 64}) != rfc_root(tiles.data(), tiles.size())) fail("a part's root");
}

struct Case {
  SamplingRules rules;
  std::vector<uint32_t> prompt, tokens;
  bool trapped;
  std::vector<uint8_t> header, root;
};

struct ModelFile {
  struct MatrixData {
    uint64_t layer;
    std::string name;
    uint32_t type;
    uint64_t rows, columns;
    std::vector<uint8_t> data;
  };
  struct VectorData {
    uint64_t layer;
    std::string name;
    std::vector<float> values;
  };
  std::string name;
  Sizes sizes;
  std::vector<float> cos, sin;
  std::vector<MatrixData> matrices;
  std::vector<VectorData> vectors;
  std::vector<Case> cases;

  explicit ModelFile(Reader& in) : name(in.text()) {
    const auto size = [&] { return static_cast<size_t>(in.number<uint64_t>()); };
    sizes.n_ctx = size(), sizes.n_layers = size(), sizes.n_vocab = size(), sizes.width = size(), sizes.ff_width = size();
    sizes.n_heads = size(), sizes.n_kv_heads = size(), sizes.head_width = size(), sizes.n_rot = size();
    sizes.eps = in.number<float>();
    sizes.rope_neighbours = in.number<uint8_t>() != 0;
    cos = in.array<float>(), sin = in.array<float>();
    for (auto n = in.number<uint64_t>(); n > 0; --n) {
      MatrixData m;
      m.layer = in.number<uint64_t>(), m.name = in.text(), m.type = in.number<uint32_t>();
      m.rows = in.number<uint64_t>(), m.columns = in.number<uint64_t>(), m.data = in.array<uint8_t>();
      matrices.push_back(std::move(m));
    }
    for (auto n = in.number<uint64_t>(); n > 0; --n) {
      VectorData v;
      v.layer = in.number<uint64_t>(), v.name = in.text(), v.values = in.array<float>();
      vectors.push_back(std::move(v));
    }
    for (auto n = in.number<uint64_t>(); n > 0; --n) {
      Case c;
      c.rules.temperature = in.number<float>(), c.rules.top_k = in.number<uint32_t>();
      c.rules.limit_top_p = in.number<uint8_t>() != 0, c.rules.top_p = in.number<float>(), c.rules.min_p = in.number<float>();
      c.rules.penalise = in.number<uint8_t>() != 0, c.rules.penalty = in.number<float>(), c.rules.seed = in.number<uint64_t>();
      c.prompt = in.array<uint32_t>(), c.tokens = in.array<uint32_t>(), c.trapped = in.number<uint8_t>() != 0;
      c.header = in.array<uint8_t>(), c.root = in.array<uint8_t>();
      cases.push_back(std::move(c));
    }
  }

  std::shared_ptr<Model> load(const Kernels& kernels, size_t threads) const {
    auto model = std::make_shared<Model>(sizes, kernels, threads, 0, cos.data(), sin.data());
    for (const MatrixData& m : matrices)
      model->set_matrix(m.layer, m.name, m.type, m.rows, m.columns, m.data.data(), m.data.size());
    for (const VectorData& v : vectors) model->set_vector(v.layer, v.name, v.values.data(), v.values.size());
    model->seal();
    return model;
  }
};

// Groups of `group` positions; 0: of random sizes.
void feed(const std::shared_ptr<Run>& run, std::span<const uint32_t> tokens, size_t group, Random& random) {
  while (!tokens.empty() && !run->trap()) {
    const size_t wanted = group == 0 ? 1 + random.below(37) : group;
    const size_t count = wanted < tokens.size() ? wanted : tokens.size();
    run->batch()->extend({{run, {tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(count)}}});
    tokens = tokens.subspan(count);
  }
}

void check_run(const std::shared_ptr<Model>& model, const Case& c, size_t group, bool replay, Random& random) {
  const auto run = std::make_shared<Run>(std::make_shared<Batch>(model), c.prompt, c.rules);
  const auto choose = [&] { return run->batch()->choose({run})[0]; };
  feed(run, c.prompt, group, random);
  const size_t given = replay && !c.tokens.empty() ? c.tokens.size() - 1 : 0;
  feed(run, std::span(c.tokens).first(given), group, random);
  for (size_t i = 0; i < c.tokens.size(); ++i) {
    if (choose() != static_cast<int64_t>(c.tokens[i])) fail("token " + std::to_string(i));
    if (i >= given && (c.trapped || i + 1 < c.tokens.size())) feed(run, std::span(c.tokens).subspan(i, 1), group, random);
  }
  if (c.trapped && run->waiting() > 0 && choose() != Run::kTrapped) fail("a trap did not come");
  if (c.trapped != run->trap().has_value()) fail(c.trapped ? "no trap" : "a trap");
  const auto leaves = c.trapped ? run->leaves_to_trap() : run->leaves(c.prompt.size() + c.tokens.size() - 1);
  const Digest root = state_root(c.header, leaves, model->sizes.n_layers + 2);
  same(std::vector<uint8_t>(root.begin(), root.end()), c.root, "state root");
}

int run_all(int count, char** arguments) {
  std::string names;
  Random hashed(0);
  for (int i = 0; i < 400; ++i) check_hashes(hashed);
  for (const Kernels* kernels : instruction_sets()) {
    self_test(*kernels);
    const FloatState state;
    for (uint64_t seed = 0; seed < 40; ++seed) {
      Random random(seed);
      for (const Type type : kAllTypes) check_product(*kernels, type, random);
      for (int i = 0; i < 10; ++i) check_operations(*kernels, random);
      check_attention(*kernels, random);
    }
    names += names.empty() ? kernels->name : std::string(" ") + kernels->name;
  }
  size_t models = 0, runs = 0;
  if (count > 1) {
    for (Reader in(arguments[1]); in.more(); ++models) {
      const ModelFile file(in);
      for (const Kernels* kernels : instruction_sets())
        for (const size_t threads : {1, 3}) {
          const auto model = file.load(*kernels, threads);
          Random random(models);
          for (size_t i = 0; i < file.cases.size(); ++i) {
            const bool wakes_much = threads > 1 && file.cases[i].prompt.size() > 100;
            for (const size_t group : {Batch::kStep, size_t{1}, size_t{0}}) {
              if (wakes_much && group == 1) continue;
              try {
                check_run(model, file.cases[i], group, group != 1, random);
              } catch (const std::exception& error) {
                fail(file.name + " case " + std::to_string(i) + " " + kernels->name + ", threads: " + std::to_string(threads) +
                     ", groups of " + std::to_string(group) + ": " + error.what());
              }
              ++runs;
            }
          }
        }
    }
  }
  std::printf("equal bits: %s; %zu models, %zu runs\n", names.c_str(), models, runs);
  return 0;
}

}  // namespace
}  // namespace aos::check

int main(int count, char** arguments) {
  try {
    return aos::check::run_all(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "DIFFERENT or broken: %s\n", error.what());
    return 1;
  }
}
