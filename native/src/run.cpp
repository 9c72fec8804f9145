#include "run.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "error.h"

namespace aos {
namespace {

constexpr size_t kPage = kChunk;  // positions of a page of keys and values: a chunk of rule 6
constexpr size_t kTailRows = 64;  // tails that are computed together
constexpr char kLeafTag[] = "AOS/state-leaf/v1";  // its final zero byte belongs to it
constexpr char kTrapTag[] = "AOS/state-trap/v1";

void put_u32(uint8_t* at, size_t value) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

Sha256 leaf_hash_of(const char* tag, size_t size) {
  Sha256 h;
  const uint8_t leaf = 0;
  h.update(&leaf, 1);
  h.update(tag, size);
  return h;
}

std::vector<uint8_t> op_entry(const Trap& trap) {
  std::vector<uint8_t> entry(12);
  put_u32(entry.data(), trap.position);
  put_u32(entry.data() + 4, trap.unit);
  put_u32(entry.data() + 8, number(trap.op));
  return entry;
}

// A run is used by one thread at a time; a second one is told so.
class Turn {
 public:
  explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) throw Error("engine.busy", "another thread is using this run");
  }
  ~Turn() { busy_ = false; }

 private:
  std::atomic<bool>& busy_;
};

}  // namespace

Run::Run(std::shared_ptr<Model> model, const std::vector<uint32_t>& prompt, const SamplingRules& rules)
    : model_(std::move(model)), sizes_(model_->sizes), kernels_(model_->kernels), n_prompt_(prompt.size()),
      sampler_(kernels_, sizes_.n_vocab, rules), scratch_(model_->pool.threads()) {
  if (!model_->sealed()) throw Error("engine.sealed", "the model is not complete");
  if (prompt.empty() || prompt.size() >= sizes_.n_ctx) throw Error("engine.prompt", "the prompt does not fit the context");
  for (const uint32_t token : prompt) {
    if (token >= sizes_.n_vocab) throw Error("engine.token", "a token is not in the vocabulary");
    sampler_.see(token);
  }
  waiting_from_ = n_prompt_ - 1;
}

Run::~Run() {
  for (Memory& page : pages_) model_->pages.give(std::move(page));
}

void Run::extend(const std::vector<uint32_t>& tokens) {
  const Turn turn(busy_);
  if (trap_) throw Error("engine.trapped", "the run has trapped");
  if (tokens.empty() || tokens.size() > kStep || length_ + tokens.size() > sizes_.n_ctx)
    throw Error("engine.step", "the positions do not fit the context or a step");
  for (const uint32_t token : tokens)
    if (token >= sizes_.n_vocab) throw Error("engine.token", "a token is not in the vocabulary");
  const FloatState state;
  first_ = length_;
  rows_ = tokens.size();
  reserve(first_ + rows_);
  embed(tokens);
  for (size_t index = 0; index < sizes_.n_layers && rows_ > 0; ++index) {
    attention_half(model_->layers[index], index);
    feed_forward(model_->layers[index]);
    settle(index + 1);
  }
  length_ = first_ + rows_;
  const size_t skip = n_prompt_ - 1;
  for (size_t position = first_; position < length_ && position < skip; ++position)
    unhashed_.push_back({static_cast<uint32_t>(position), static_cast<uint32_t>(sizes_.n_layers + 1), {}, {}});
  if (length_ > skip) {
    const size_t from = first_ > skip ? first_ : skip;
    const float* rows = x_.as<float>() + (from - first_) * sizes_.width;
    waiting_.insert(waiting_.end(), rows, rows + (length_ - from) * sizes_.width);
    waiting_count_ += length_ - from;
  }
  // One position's leaves wait for the tail's product, which follows at once; many are hashed now.
  if (tokens.size() > 1 || length_ <= skip) flush();
}

void Run::reserve(size_t positions) {
  const size_t leaves = positions * (sizes_.n_layers + 2);
  if (leaves_.size() < leaves) leaves_.resize(leaves);
  const size_t page_bytes = sizes_.n_layers * sizes_.n_kv_heads * kPage * (sizes_.head_width + sizes_.padded_head()) * 2;
  while (pages_.size() * kPage < positions) pages_.push_back(model_->pages.take(page_bytes));
  if (scratch_positions_ < positions) {
    scratch_positions_ = (positions + positions / 2 + kPage) / kPage * kPage;
    const size_t floats = kQueries * (scratch_positions_ + sizes_.head_width + sizes_.padded_head());
    for (Memory& memory : scratch_) memory = Memory(floats * 4);
  }
  if (capacity_ >= rows_) return;
  flush();
  capacity_ = rows_;
  const size_t room = Tiles::padded(capacity_) * 4;
  const auto padded = [](size_t n) { return (n + kRows - 1) / kRows * kRows; };
  x_ = Memory(room * sizes_.width);
  q_ = Memory(room * padded(sizes_.attention_width()));
  k_ = Memory(room * padded(sizes_.kv_width()));
  v_ = Memory(room * padded(sizes_.kv_width()));
  k_half_ = Memory(room / 2 * sizes_.kv_width());
  v_half_ = Memory(room / 2 * sizes_.kv_width());
  mixed_ = Memory(room * sizes_.attention_width());
  out_ = Memory(room * sizes_.width);
  gate_ = Memory(room * sizes_.ff_width);
  up_ = Memory(room * sizes_.ff_width);
  ops_ = std::vector<std::atomic<uint32_t>>(capacity_);
}

// --- traps and leaves

void Run::trapped(size_t row, Op op) {
  const auto order = static_cast<uint32_t>(op);
  uint32_t before = ops_[row].load(std::memory_order_relaxed);
  while ((before == 0 || order < before) && !ops_[row].compare_exchange_weak(before, order, std::memory_order_relaxed)) {
  }
}

void Run::check(size_t row, Op op, const float* x, size_t n) {
  if (!kernels_.finite(x, n)) trapped(row, op);
}

// Ends a unit: rows from the first that trapped on are forgotten, the others are committed. Rows before a trap do not
// depend on it, so they go on; they may trap in a later unit, which is then the run's trap.
void Run::settle(size_t unit) {
  for (size_t row = 0; row < rows_; ++row) {
    const uint32_t op = ops_[row].exchange(0, std::memory_order_relaxed);
    if (op == 0) continue;
    trap_ = Trap{first_ + row, unit, static_cast<Op>(op)};
    for (size_t rest = row + 1; rest < rows_; ++rest) ops_[rest].store(0, std::memory_order_relaxed);
    rows_ = row;
  }
  const size_t kv = sizes_.kv_width();
  for (size_t row = 0; row < rows_; ++row) {
    Leaf leaf{static_cast<uint32_t>(first_ + row), static_cast<uint32_t>(unit), {x_.as<float>() + row * sizes_.width}, {4 * sizes_.width}};
    if (unit > 0) {
      leaf.part[1] = k_half_.as<uint16_t>() + row * kv;
      leaf.part[2] = v_half_.as<uint16_t>() + row * kv;
      leaf.size[1] = leaf.size[2] = 2 * kv;
    }
    unhashed_.push_back(leaf);
  }
}

void Run::hash(const Leaf& leaf) {
  const auto start = std::chrono::steady_clock::now();
  Sha256 h = leaf_hash_of(kLeafTag, sizeof kLeafTag);
  uint8_t place[8];
  put_u32(place, leaf.position);
  put_u32(place + 4, leaf.unit);
  h.update(place, 8);
  for (size_t i = 0; i < 3; ++i)
    if (leaf.size[i] > 0) h.update(leaf.part[i], leaf.size[i]);
  leaf_at(leaf.position, leaf.unit) = h.finish();
  const auto spent = std::chrono::steady_clock::now() - start;
  commitment_ns_.fetch_add(static_cast<uint64_t>(std::chrono::nanoseconds(spent).count()), std::memory_order_relaxed);
}

// The leaves that wait, as work of the next region; what they cover must live until it ends.
Extra Run::pending() {
  hashing_.swap(unhashed_);
  unhashed_.clear();
  return {hashing_.size(), [this](size_t index) { hash(hashing_[index]); }};
}

void Run::flush() {
  const Extra extra = pending();
  model_->pool.run(extra.size, extra.size * 16 * sizes_.width, [&](size_t index, size_t) { extra.work(index); });
}

void Run::per_row(size_t width, const std::function<void(size_t)>& work) {
  model_->pool.run(rows_, rows_ * width * 16, [&](size_t row, size_t) { work(row); });
}

// --- the graph

void Run::embed(const std::vector<uint32_t>& tokens) {
  // Leaves of the position before may still cover x.
  if (!unhashed_.empty()) flush();
  per_row(sizes_.width, [&](size_t row) {
    float* x = x_.as<float>() + row * sizes_.width;
    model_->embedding.row(tokens[row], x);
    check(row, Op::embedding, x, sizes_.width);
  });
  settle(0);
}

uint16_t* Run::keys(size_t page, size_t layer, size_t kv_head) const {
  const size_t one = kPage * (sizes_.head_width + sizes_.padded_head());
  return pages_[page].as<uint16_t>() + (layer * sizes_.n_kv_heads + kv_head) * one;
}

uint16_t* Run::values(size_t page, size_t layer, size_t kv_head) const {
  return keys(page, layer, kv_head) + kPage * sizes_.head_width;
}

void Run::attention_half(const Layer& layer, size_t index) {
  const size_t width = sizes_.width, hd = sizes_.head_width, half = sizes_.n_rot / 2;
  float* x = x_.as<float>();
  const bool dense = layer.q.dense() || layer.k.dense() || layer.v.dense();
  const bool quantised = !layer.q.dense() || !layer.k.dense() || !layer.v.dense();
  tiles_.begin(rows_, width, quantised, dense);
  per_row(width, [&](size_t row) {
    float* normed = out_.as<float>() + row * width;
    if (!kernels_.rms_norm(x + row * width, layer.attn_norm.data(), width, sizes_.eps, normed)) trapped(row, Op::attn_norm);
    tiles_.put(kernels_, row, normed);
  });
  tiles_.multiply(model_->pool, kernels_, {{&layer.q, q_.as<float>()}, {&layer.k, k_.as<float>()}, {&layer.v, v_.as<float>()}}, pending());

  const size_t kv = sizes_.kv_width();
  per_row(sizes_.attention_width(), [&](size_t row) {
    const size_t position = first_ + row;
    float* q = q_.as<float>() + row * layer.q.padded_rows();
    float* k = k_.as<float>() + row * layer.k.padded_rows();
    float* v = v_.as<float>() + row * layer.v.padded_rows();
    if (!layer.q_bias.empty()) kernels_.add(q, layer.q_bias.data(), sizes_.attention_width());
    if (!layer.k_bias.empty()) kernels_.add(k, layer.k_bias.data(), kv);
    if (!layer.v_bias.empty()) kernels_.add(v, layer.v_bias.data(), kv);
    check(row, Op::q, q, sizes_.attention_width());
    check(row, Op::k, k, kv);
    check(row, Op::v, v, kv);
    if (!layer.q_norm.empty()) {
      for (size_t h = 0; h < sizes_.n_heads; ++h)
        if (!kernels_.rms_norm(q + h * hd, layer.q_norm.data(), hd, sizes_.eps, q + h * hd)) trapped(row, Op::q_norm);
      for (size_t h = 0; h < sizes_.n_kv_heads; ++h)
        if (!kernels_.rms_norm(k + h * hd, layer.k_norm.data(), hd, sizes_.eps, k + h * hd)) trapped(row, Op::k_norm);
    }
    const float* cos = model_->cos.data() + position * half;
    const float* sin = model_->sin.data() + position * half;
    for (size_t h = 0; h < sizes_.n_heads; ++h) kernels_.rope(q + h * hd, cos, sin, half, sizes_.rope_neighbours);
    for (size_t h = 0; h < sizes_.n_kv_heads; ++h) kernels_.rope(k + h * hd, cos, sin, half, sizes_.rope_neighbours);
    check(row, Op::rope_q, q, sizes_.attention_width());
    check(row, Op::rope_k, k, kv);
    kernels_.scale(q, sizes_.attention_width(), 1.0f / std::sqrt(static_cast<float>(hd)));
    uint16_t* k_half = k_half_.as<uint16_t>() + row * kv;
    uint16_t* v_half = v_half_.as<uint16_t>() + row * kv;
    kernels_.to_half(k, kv, k_half);
    kernels_.to_half(v, kv, v_half);
    for (size_t h = 0; h < sizes_.n_kv_heads; ++h) {
      const size_t inside = position % kPage;
      uint16_t* to = keys(position / kPage, index, h) + inside / kRows * hd * kRows + inside % kRows;
      for (size_t i = 0; i < hd; ++i) to[i * kRows] = k_half[h * hd + i];
      std::memcpy(values(position / kPage, index, h) + inside * sizes_.padded_head(), v_half + h * hd, 2 * hd);
    }
  });
  attend(index);

  tiles_.begin(rows_, sizes_.attention_width(), !layer.attn_output.dense(), layer.attn_output.dense());
  per_row(sizes_.attention_width(), [&](size_t row) { tiles_.put(kernels_, row, mixed_.as<float>() + row * sizes_.attention_width()); });
  tiles_.multiply(model_->pool, kernels_, {{&layer.attn_output, out_.as<float>()}});
}

void Run::attend(size_t index) {
  const size_t queries = rows_ * (sizes_.n_heads / sizes_.n_kv_heads);
  const size_t tiles = (queries + kQueries - 1) / kQueries;
  // The longest rows first, so that the threads end together.
  const size_t bytes = rows_ * sizes_.attention_width() * (first_ + rows_) * 2;
  model_->pool.run(tiles * sizes_.n_kv_heads, bytes, [&](size_t item, size_t thread) {
    const size_t tile = tiles - 1 - item / sizes_.n_kv_heads, kv_head = item % sizes_.n_kv_heads;
    const size_t from = tile * kQueries;
    attend_tile(index, kv_head, from, queries - from < kQueries ? queries - from : kQueries, thread);
  });
}

// Rule 6 for consecutive queries (row, head) that share a key head.
void Run::attend_tile(size_t index, size_t kv_head, size_t first_query, size_t count, size_t thread) {
  const size_t shared = sizes_.n_heads / sizes_.n_kv_heads, hd = sizes_.head_width, padded = sizes_.padded_head();
  float* s = scratch_[thread].as<float>();
  const size_t stride = scratch_positions_;
  float* q = s + kQueries * stride;
  float* o = q + kQueries * hd;
  const size_t last = first_ + (first_query + count - 1) / shared;  // the last position that any of them reads
  const auto row_of = [&](size_t query) { return (first_query + query) / shared; };
  const auto head_of = [&](size_t query) { return kv_head * shared + (first_query + query) % shared; };
  for (size_t query = 0; query < count; ++query)
    std::memcpy(q + query * hd, q_.as<float>() + row_of(query) * model_->layers[index].q.padded_rows() + head_of(query) * hd, 4 * hd);
  for (size_t page = 0; page <= last / kPage; ++page) {
    const size_t inside = last - page * kPage < kPage ? last - page * kPage + 1 : kPage;
    kernels_.scores(q, count, keys(page, index, kv_head), (inside + kRows - 1) / kRows, hd, s + page * kPage, stride);
  }
  float sums[kQueries];
  for (size_t query = 0; query < count; ++query) {
    float* row = s + query * stride;
    const size_t read = first_ + row_of(query) + 1;
    check(row_of(query), Op::scores, row, read);
    sums[query] = kernels_.softmax(row, read);
    check(row_of(query), Op::softmax_sum, &sums[query], 1);
    // A later key takes no part: weight +0 adds nothing to a sum that cannot be -0.
    for (size_t j = read; j <= last; ++j) row[j] = 0.0f;
  }
  std::memset(o, 0, 4 * kQueries * padded);
  for (size_t page = 0; page <= last / kPage; ++page) {
    const size_t inside = last - page * kPage < kPage ? last - page * kPage + 1 : kPage;
    kernels_.mix(s + page * kPage, stride, count, values(page, index, kv_head), inside, padded, o);
  }
  for (size_t query = 0; query < count; ++query) {
    float* out = mixed_.as<float>() + row_of(query) * sizes_.attention_width() + head_of(query) * hd;
    kernels_.scale(o + query * padded, hd, 1.0f / sums[query]);
    std::memcpy(out, o + query * padded, 4 * hd);
    check(row_of(query), Op::attention, out, hd);
  }
}

void Run::feed_forward(const Layer& layer) {
  const size_t width = sizes_.width, ff = sizes_.ff_width;
  float *x = x_.as<float>(), *out = out_.as<float>(), *gate = gate_.as<float>(), *up = up_.as<float>();
  tiles_.begin(rows_, width, !layer.gate.dense() || !layer.up.dense(), layer.gate.dense() || layer.up.dense());
  per_row(width, [&](size_t row) {
    float *at = x + row * width, *o = out + row * width;
    check(row, Op::attn_output, o, width);
    kernels_.add(at, o, width);
    check(row, Op::attn_residual, at, width);
    if (!kernels_.rms_norm(at, layer.ffn_norm.data(), width, sizes_.eps, o)) trapped(row, Op::ffn_norm);
    tiles_.put(kernels_, row, o);
  });
  tiles_.multiply(model_->pool, kernels_, {{&layer.gate, gate}, {&layer.up, up}});
  tiles_.begin(rows_, ff, !layer.down.dense(), layer.down.dense());
  per_row(ff, [&](size_t row) {
    float *g = gate + row * ff, *u = up + row * ff;
    check(row, Op::gate, g, ff);
    check(row, Op::up, u, ff);
    kernels_.silu_product(g, u, ff, g);
    check(row, Op::activation, g, ff);
    tiles_.put(kernels_, row, g);
  });
  tiles_.multiply(model_->pool, kernels_, {{&layer.down, out}});
  per_row(width, [&](size_t row) {
    float *at = x + row * width, *o = out + row * width;
    check(row, Op::down, o, width);
    kernels_.add(at, o, width);
    check(row, Op::ffn_residual, at, width);
  });
}

// --- the tail

void Run::compute_tails() {
  const size_t count = waiting_count_ < kTailRows ? waiting_count_ : kTailRows;
  const Matrix& output = model_->output();
  const size_t width = sizes_.width, size = Tiles::padded(count) * output.padded_rows() * 4;
  for (const Leaf& leaf : unhashed_)
    if (leaf.unit == sizes_.n_layers + 1 && leaf.size[0] > 0) {
      flush();  // it covers the logits of an earlier tail
      break;
    }
  endings_.clear();
  if (logits_.size() < size) logits_ = Memory(size);
  tail_ops_.assign(count, 0);
  tiles_.begin(count, width, !output.dense(), output.dense());
  std::vector<float> normed(count * width);
  model_->pool.run(count, count * width * 16, [&](size_t row, size_t) {
    float* out = normed.data() + row * width;
    if (!kernels_.rms_norm(waiting_.data() + row * width, model_->output_norm.data(), width, sizes_.eps, out))
      tail_ops_[row] = static_cast<uint32_t>(Op::output_norm);
    tiles_.put(kernels_, row, out);
  });
  tiles_.multiply(model_->pool, kernels_, {{&output, logits_.as<float>()}}, pending());
  model_->pool.run(count, count * sizes_.n_vocab * 4, [&](size_t row, size_t) {
    const bool finite = kernels_.finite(logits_.as<float>() + row * output.padded_rows(), sizes_.n_vocab);
    if (tail_ops_[row] == 0 && !finite) tail_ops_[row] = static_cast<uint32_t>(Op::logits);
  });
  tails_from_ = waiting_from_;
  tails_count_ = count;
  endings_.reserve(kTailRows);
}

int64_t Run::choose() {
  const Turn turn(busy_);
  if (waiting_count_ == 0) throw Error("engine.step", "no position waits for its tail");
  const FloatState state;
  if (waiting_from_ >= tails_from_ + tails_count_ || waiting_from_ < tails_from_) compute_tails();
  const size_t row = waiting_from_ - tails_from_, unit = sizes_.n_layers + 1;
  const float* logits = logits_.as<float>() + row * model_->output().padded_rows();
  Op op = static_cast<Op>(tail_ops_[row]);
  int64_t token = kTrapped;
  if (op == Op::none) {
    token = sampler_.choose(logits, static_cast<uint32_t>(outputs_), record_);
    if (token == kTrapped) op = Op::sampler;
  }
  if (token == kTrapped) {
    trap_ = Trap{waiting_from_, unit, op};
    return kTrapped;
  }
  const auto id = static_cast<uint32_t>(token);
  sampler_.see(id);
  endings_.push_back(record_);
  for (int i = 0; i < 4; ++i) endings_.back().push_back(static_cast<uint8_t>(id >> 8 * i));
  unhashed_.push_back({static_cast<uint32_t>(waiting_from_), static_cast<uint32_t>(unit),
                       {logits, endings_.back().data()}, {4 * sizes_.n_vocab, endings_.back().size()}});
  ++outputs_;
  ++waiting_from_;
  --waiting_count_;
  if (waiting_count_ == 0 || row + 1 == tails_count_) {
    const size_t done = row + 1;
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(done * sizes_.width));
    tails_from_ = tails_count_ = 0;
  }
  return token;
}

std::vector<Digest> Run::leaves(size_t positions) {
  const Turn turn(busy_);
  flush();
  if (positions * (sizes_.n_layers + 2) > leaves_.size()) throw Error("engine.step", "the positions are not computed");
  return {leaves_.begin(), leaves_.begin() + static_cast<ptrdiff_t>(positions * (sizes_.n_layers + 2))};
}

std::vector<Digest> Run::leaves_to_trap() {
  const Turn turn(busy_);
  flush();
  if (!trap_) throw Error("engine.step", "the run has not trapped");
  const size_t before = trap_->position * (sizes_.n_layers + 2) + trap_->unit;
  std::vector<Digest> out(leaves_.begin(), leaves_.begin() + static_cast<ptrdiff_t>(before));
  Sha256 h = leaf_hash_of(kTrapTag, sizeof kTrapTag);
  const std::vector<uint8_t> entry = op_entry(*trap_);
  h.update(entry.data(), entry.size());
  out.push_back(h.finish());
  return out;
}

Digest Run::root(const std::vector<uint8_t>& header_entry, const std::vector<Digest>& leaves) {
  Sha256 h;
  const uint8_t leaf = 0;
  h.update(&leaf, 1);
  h.update(header_entry.data(), header_entry.size());
  std::vector<Digest> level{h.finish()};
  level.insert(level.end(), leaves.begin(), leaves.end());
  return tree_root(std::move(level));
}

}  // namespace aos
