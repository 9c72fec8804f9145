#include "batch.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.h"

namespace aos {
namespace {

constexpr size_t kTailRows = 64;  // tails that are computed together, where there are fewer runs

}  // namespace

Batch::Turn::Turn(Batch& batch) : busy_(batch.busy_) {
  if (busy_.exchange(true)) throw Error("engine.busy", "another thread is using this batch");
}

Batch::Batch(std::shared_ptr<Model> model)
    : model_(std::move(model)), sizes_(model_->sizes), kernels_(model_->kernels), scratch_(model_->pool.threads()) {
  if (!model_->sealed()) throw Error("engine.sealed", "the model is not complete");
}

void Batch::extend(const std::vector<Part>& parts) {
  const Turn turn(*this);
  const FloatState state;
  begin(parts);
  embed();
  for (size_t index = 0; index < sizes_.n_layers && !rows_.empty(); ++index) {
    attention_half(model_->layers[index], index);
    feed_forward(model_->layers[index]);
    settle(index + 1);
  }
  end();
}

void Batch::begin(const std::vector<Part>& parts) {
  size_t rows = 0, longest = 0;
  for (const Part& part : parts) {
    const Run& run = *part.run;
    if (run.batch_.get() != this) throw Error("engine.step", "a run is of another batch");
    if (run.trap_) throw Error("engine.trapped", "the run has trapped");
    if (part.tokens.empty() || part.tokens.size() > kStep || run.length_ + part.tokens.size() > sizes_.n_ctx)
      throw Error("engine.step", "the positions do not fit the context or a step");
    for (const Part& other : parts)
      if (&other != &part && other.run == part.run) throw Error("engine.step", "a run is twice in one step");
    for (const uint32_t token : part.tokens)
      if (token >= sizes_.n_vocab) throw Error("engine.token", "a token is not in the vocabulary");
    rows += part.tokens.size();
    longest = std::max(longest, run.length_ + part.tokens.size());
  }
  if (rows == 0 || rows > kMost) throw Error("engine.step", "the positions do not fit a step");
  for (const Part& part : parts) part.run->take_pages(part.run->length_ + part.tokens.size());
  flush();  // leaves of the step before may still cover x
  reserve(rows, longest);
  parts_ = &parts;
  rows_.clear();
  for (size_t part = 0; part < parts.size(); ++part) {
    const Run& run = *parts[part].run;
    for (size_t i = 0; i < parts[part].tokens.size(); ++i) rows_.push_back({part, run.length_ + i});
    for (size_t page = run.length_ / kPage; page * kPage < run.length_ + parts[part].tokens.size(); ++page)
      held_.push_back(run.pages_[page]);
  }
  plan_attention();
}

void Batch::reserve(size_t rows, size_t positions) {
  if (scratch_positions_ < positions) {
    const size_t room = (positions + positions / 2 + kPage) / kPage * kPage;
    const size_t floats = kQueries * (room + sizes_.head_width + sizes_.padded_head());
    for (Memory& memory : scratch_) memory = Memory(floats * 4);
    scratch_positions_ = room;
  }
  if (capacity_ >= rows) return;
  const size_t room = Tiles::padded(rows) * 4;
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
  ops_ = std::vector<std::atomic<uint32_t>>(rows);
  capacity_ = rows;
}

// --- traps and leaves

void Batch::trapped(size_t row, Op op) {
  const auto order = static_cast<uint32_t>(op);
  uint32_t before = ops_[row].load(std::memory_order_relaxed);
  while ((before == 0 || order < before) && !ops_[row].compare_exchange_weak(before, order, std::memory_order_relaxed)) {
  }
}

void Batch::check(size_t row, Op op, const float* x, size_t n) {
  if (!kernels_.finite(x, n)) trapped(row, op);
}

// Ends a unit: of each run, rows from the first that trapped on are forgotten, the others are committed. Rows before a
// trap do not depend on it, so they go on; they may trap in a later unit, which is then the run's trap.
void Batch::settle(size_t unit) {
  const size_t kv = sizes_.kv_width(), kept_leaves = sizes_.n_layers + 1;
  std::vector<size_t> kept;
  kept.reserve(rows_.size());
  size_t ended = parts_->size();  // the part that has trapped in this unit, as its rows follow one another
  for (size_t row = 0; row < rows_.size(); ++row) {
    const auto [part, position] = rows_[row];
    const uint32_t op = ops_[row].exchange(0, std::memory_order_relaxed);
    if (part == ended) continue;
    Run& run = *(*parts_)[part].run;
    if (op != 0) {
      run.trap_ = Trap{position, unit, static_cast<Op>(op)};
      ended = part;
      continue;
    }
    unhashed_.push_back({&run.pages_[position / kPage]->leaves[position % kPage * kept_leaves + unit],
                         static_cast<uint32_t>(position),
                         static_cast<uint32_t>(unit),
                         {{x_.as<float>() + row * sizes_.width, 4 * sizes_.width, kTile},
                          {k_half_.as<uint16_t>() + row * kv, 2 * kv, kCacheTile},
                          {v_half_.as<uint16_t>() + row * kv, 2 * kv, kCacheTile}},
                         unit > 0 ? size_t{3} : size_t{1}});
    if (const auto watched = run.watched_.find(unit); watched != run.watched_.end()) {
      const float* x = x_.as<float>() + row * sizes_.width;
      watched->second.insert(watched->second.end(), x, x + sizes_.width);
    }
    kept.push_back(row);
  }
  if (kept.size() == rows_.size()) return;
  flush();
  for (size_t i = 0; i < kept.size(); ++i) {
    std::memmove(x_.as<float>() + i * sizes_.width, x_.as<float>() + kept[i] * sizes_.width, 4 * sizes_.width);
    rows_[i] = rows_[kept[i]];
  }
  rows_.resize(kept.size());
  plan_attention();
}

void Batch::end() {
  bool one_each = true;
  size_t row = 0;
  for (size_t part = 0; part < parts_->size(); ++part) {
    Run& run = *(*parts_)[part].run;
    const size_t first = row, skip = run.n_prompt_ - 1, before = run.length_;
    while (row < rows_.size() && rows_[row].part == part) ++row;
    run.length_ += row - first;
    one_each = one_each && row - first == 1 && run.length_ > skip;
    if (run.length_ <= skip) continue;
    const size_t from = first + (before < skip ? skip - before : 0);
    run.residuals_.insert(run.residuals_.end(), x_.as<float>() + from * sizes_.width, x_.as<float>() + row * sizes_.width);
  }
  parts_ = nullptr;
  // Leaves of single positions wait for the tails' product, which follows at once; many are hashed now.
  if (!one_each) flush();
}

void Batch::hash(const Leaf& leaf) {
  const auto start = std::chrono::steady_clock::now();
  *leaf.to = leaf_hash(leaf.position, leaf.unit, leaf.parts, leaf.count);
  const auto spent = std::chrono::steady_clock::now() - start;
  commitment_ns_.fetch_add(static_cast<uint64_t>(std::chrono::nanoseconds(spent).count()), std::memory_order_relaxed);
}

// The leaves that wait, as work of the next region; what they cover must live until it ends.
Extra Batch::pending() {
  hashing_.swap(unhashed_);
  unhashed_.clear();
  held_hashing_.swap(held_);
  // What this step holds still takes leaves in its later units.
  held_ = parts_ != nullptr ? held_hashing_ : std::vector<std::shared_ptr<void>>{};
  return {hashing_.size(), [this](size_t index) { hash(hashing_[index]); }};
}

void Batch::flush() {
  const Extra extra = pending();
  model_->pool.run(extra.size, extra.size * 16 * sizes_.width, [&](size_t index, size_t) { extra.work(index); });
  hashing_.clear();
  held_hashing_.clear();
}

void Batch::settle_leaves() {
  const Turn turn(*this);
  flush();
}

void Batch::per_row(size_t width, const std::function<void(size_t)>& work) {
  model_->pool.run(rows_.size(), rows_.size() * width * 16, [&](size_t row, size_t) { work(row); });
}

// --- the graph

void Batch::embed() {
  per_row(sizes_.width, [&](size_t row) {
    float* x = x_.as<float>() + row * sizes_.width;
    const Part& part = (*parts_)[rows_[row].part];
    model_->embedding.row(part.tokens[rows_[row].position - part.run->length_], x);
    check(row, Op::embedding, x, sizes_.width);
  });
  settle(0);
}

uint16_t* Batch::keys(const Page& page, size_t layer, size_t kv_head) const {
  const size_t one = kPage * (sizes_.head_width + sizes_.padded_head());
  return page.memory.as<uint16_t>() + (layer * sizes_.n_kv_heads + kv_head) * one;
}

uint16_t* Batch::values(const Page& page, size_t layer, size_t kv_head) const {
  return keys(page, layer, kv_head) + kPage * sizes_.head_width;
}

void Batch::copy_positions(const Page& from, Page& to, size_t count) const {
  const size_t tiles = (count + kRows - 1) / kRows * kRows;
  for (size_t layer = 0; layer < sizes_.n_layers; ++layer)
    for (size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      std::memcpy(keys(to, layer, head), keys(from, layer, head), 2 * tiles * sizes_.head_width);
      std::memcpy(values(to, layer, head), values(from, layer, head), 2 * count * sizes_.padded_head());
    }
  std::copy_n(from.leaves.begin(), count * (sizes_.n_layers + 1), to.leaves.begin());
}

void Batch::attention_half(const Layer& layer, size_t index) {
  const size_t width = sizes_.width;
  float* x = x_.as<float>();
  const bool dense = layer.q.dense() || layer.k.dense() || layer.v.dense();
  const bool quantised = !layer.q.dense() || !layer.k.dense() || !layer.v.dense();
  tiles_.begin(rows_.size(), width, quantised, dense);
  per_row(width, [&](size_t row) {
    float* normed = out_.as<float>() + row * width;
    if (!kernels_.rms_norm(x + row * width, layer.attn_norm.data(), width, sizes_.eps, normed)) trapped(row, Op::attn_norm);
    tiles_.put(kernels_, row, normed);
  });
  tiles_.multiply(model_->pool, kernels_, {{&layer.q, q_.as<float>()}, {&layer.k, k_.as<float>()}, {&layer.v, v_.as<float>()}}, pending());
  per_row(sizes_.attention_width(), [&](size_t row) { put_position(layer, index, row); });
  attend(index);

  tiles_.begin(rows_.size(), sizes_.attention_width(), !layer.attn_output.dense(), layer.attn_output.dense());
  per_row(sizes_.attention_width(), [&](size_t row) { tiles_.put(kernels_, row, mixed_.as<float>() + row * sizes_.attention_width()); });
  tiles_.multiply(model_->pool, kernels_, {{&layer.attn_output, out_.as<float>()}});
}

// From the products to q, k and v of one position, its keys and values into its page.
void Batch::put_position(const Layer& layer, size_t index, size_t row) {
  const size_t hd = sizes_.head_width, half = sizes_.n_rot / 2, kv = sizes_.kv_width(), position = rows_[row].position;
  const Page& page = *(*parts_)[rows_[row].part].run->pages_[position / kPage];
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
    uint16_t* to = keys(page, index, h) + inside / kRows * hd * kRows + inside % kRows;
    for (size_t i = 0; i < hd; ++i) to[i * kRows] = k_half[h * hd + i];
    std::memcpy(values(page, index, h) + inside * sizes_.padded_head(), v_half + h * hd, 2 * hd);
  }
}

// The tiles of every run, the longest first, so that the threads end together.
void Batch::plan_attention() {
  const size_t shared = sizes_.n_heads / sizes_.n_kv_heads;
  attention_.clear();
  attention_bytes_ = 0;
  for (size_t first = 0, end; first < rows_.size(); first = end) {
    for (end = first; end < rows_.size() && rows_[end].part == rows_[first].part;) ++end;
    const size_t queries = (end - first) * shared;
    for (size_t query = 0; query < queries; query += kQueries)
      for (size_t head = 0; head < sizes_.n_kv_heads; ++head)
        attention_.push_back({first, head, query, std::min(queries - query, kQueries)});
    attention_bytes_ += (end - first) * sizes_.attention_width() * (rows_[end - 1].position + 1) * 2;
  }
  const auto last = [&](const Attention& a) { return rows_[a.first_row + (a.first_query + a.count - 1) / shared].position; };
  std::stable_sort(attention_.begin(), attention_.end(), [&](const Attention& a, const Attention& b) { return last(a) > last(b); });
}

void Batch::attend(size_t index) {
  model_->pool.run(attention_.size(), attention_bytes_, [&](size_t item, size_t thread) { attend_tile(index, attention_[item], thread); });
}

// Rule 6.
void Batch::attend_tile(size_t index, const Attention& tile, size_t thread) {
  const size_t shared = sizes_.n_heads / sizes_.n_kv_heads, hd = sizes_.head_width, padded = sizes_.padded_head();
  const size_t count = tile.count, kv_head = tile.kv_head;
  const auto& pages = (*parts_)[rows_[tile.first_row].part].run->pages_;
  float* s = scratch_[thread].as<float>();
  const size_t stride = scratch_positions_;
  float* q = s + kQueries * stride;
  float* o = q + kQueries * hd;
  const auto row_of = [&](size_t query) { return tile.first_row + (tile.first_query + query) / shared; };
  const auto head_of = [&](size_t query) { return kv_head * shared + (tile.first_query + query) % shared; };
  const size_t last = rows_[row_of(count - 1)].position;  // the last position that any of them reads
  for (size_t query = 0; query < count; ++query)
    std::memcpy(q + query * hd, q_.as<float>() + row_of(query) * model_->layers[index].q.padded_rows() + head_of(query) * hd, 4 * hd);
  for (size_t page = 0; page <= last / kPage; ++page) {
    const size_t inside = last - page * kPage < kPage ? last - page * kPage + 1 : kPage;
    kernels_.scores(q, count, keys(*pages[page], index, kv_head), (inside + kRows - 1) / kRows, hd, s + page * kPage, stride);
  }
  float sums[kQueries];
  for (size_t query = 0; query < count; ++query) {
    float* row = s + query * stride;
    const size_t read = rows_[row_of(query)].position + 1;
    check(row_of(query), Op::scores, row, read);
    sums[query] = kernels_.softmax(row, read);
    check(row_of(query), Op::softmax_sum, &sums[query], 1);
    // A later key takes no part: weight +0 adds nothing to a sum that cannot be -0.
    for (size_t j = read; j <= last; ++j) row[j] = 0.0f;
  }
  std::memset(o, 0, 4 * kQueries * padded);
  for (size_t page = 0; page <= last / kPage; ++page) {
    const size_t inside = last - page * kPage < kPage ? last - page * kPage + 1 : kPage;
    kernels_.mix(s + page * kPage, stride, count, values(*pages[page], index, kv_head), inside, padded, o);
  }
  for (size_t query = 0; query < count; ++query) {
    float* out = mixed_.as<float>() + row_of(query) * sizes_.attention_width() + head_of(query) * hd;
    kernels_.scale(o + query * padded, hd, 1.0f / sums[query]);
    std::memcpy(out, o + query * padded, 4 * hd);
    check(row_of(query), Op::attention, out, hd);
  }
}

void Batch::feed_forward(const Layer& layer) {
  const size_t width = sizes_.width, ff = sizes_.ff_width;
  float *x = x_.as<float>(), *out = out_.as<float>(), *gate = gate_.as<float>(), *up = up_.as<float>();
  tiles_.begin(rows_.size(), width, !layer.gate.dense() || !layer.up.dense(), layer.gate.dense() || layer.up.dense());
  per_row(width, [&](size_t row) {
    float *at = x + row * width, *o = out + row * width;
    check(row, Op::attn_output, o, width);
    kernels_.add(at, o, width);
    check(row, Op::attn_residual, at, width);
    if (!kernels_.rms_norm(at, layer.ffn_norm.data(), width, sizes_.eps, o)) trapped(row, Op::ffn_norm);
    tiles_.put(kernels_, row, o);
  });
  tiles_.multiply(model_->pool, kernels_, {{&layer.gate, gate}, {&layer.up, up}});
  tiles_.begin(rows_.size(), ff, !layer.down.dense(), layer.down.dense());
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

// The tails of runs that have none computed. Each run gets its logits to itself, as its leaf is hashed later.
void Batch::compute_tails(const std::vector<std::shared_ptr<Run>>& runs) {
  struct TailRow {
    Run* run;
    size_t index;
  };
  std::vector<TailRow> rows;
  const Matrix& output = model_->output();
  const size_t width = sizes_.width, stride = output.padded_rows(), most = std::max<size_t>(kTailRows / runs.size(), 1);
  for (const auto& run : runs) {
    if (run->tails_->next < run->tails_->count) continue;
    const size_t count = std::min(run->residuals_.size() / width, most);
    for (size_t i = 0; i < count; ++i) rows.push_back({run.get(), i});
  }
  if (rows.empty()) return;
  const size_t size = Tiles::padded(rows.size()) * stride * 4;
  if (logits_.size() < size) logits_ = Memory(size);
  std::vector<float> normed(rows.size() * width);
  std::vector<uint32_t> ops(rows.size(), 0);
  tiles_.begin(rows.size(), width, !output.dense(), output.dense());
  model_->pool.run(rows.size(), rows.size() * width * 16, [&](size_t row, size_t) {
    float* out = normed.data() + row * width;
    const float* x = rows[row].run->residuals_.data() + rows[row].index * width;
    if (!kernels_.rms_norm(x, model_->output_norm.data(), width, sizes_.eps, out)) ops[row] = static_cast<uint32_t>(Op::output_norm);
    tiles_.put(kernels_, row, out);
  });
  // This hashes also the leaves of earlier tails, whose logits are overwritten next.
  tiles_.multiply(model_->pool, kernels_, {{&output, logits_.as<float>()}}, pending());
  for (size_t row = 0; row < rows.size(); ++row) {
    Run::Tails& tails = *rows[row].run->tails_;
    if (row + 1 < rows.size() && rows[row + 1].run == rows[row].run) continue;
    const size_t count = rows[row].index + 1;
    if (tails.logits.size() < count * sizes_.n_vocab * 4) tails.logits = Memory(count * sizes_.n_vocab * 4);
    tails.ops.assign(count, 0);
    tails.endings.assign(count, {});
    tails.count = count;
    tails.next = 0;
  }
  model_->pool.run(rows.size(), rows.size() * sizes_.n_vocab * 4, [&](size_t row, size_t) {
    Run::Tails& tails = *rows[row].run->tails_;
    const float* logits = logits_.as<float>() + row * stride;
    if (ops[row] == 0 && !kernels_.finite(logits, sizes_.n_vocab)) ops[row] = static_cast<uint32_t>(Op::logits);
    tails.ops[rows[row].index] = ops[row];
    std::memcpy(tails.logits.as<float>() + rows[row].index * sizes_.n_vocab, logits, 4 * sizes_.n_vocab);
  });
  for (const TailRow& row : rows)
    if (row.index == 0) {
      auto& residuals = row.run->residuals_;
      residuals.erase(residuals.begin(), residuals.begin() + static_cast<ptrdiff_t>(row.run->tails_->count * width));
    }
}

std::vector<int64_t> Batch::choose(const std::vector<std::shared_ptr<Run>>& runs) {
  const Turn turn(*this);
  if (runs.empty() || runs.size() > kMost) throw Error("engine.step", "the runs do not fit a step");
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i]->batch_.get() != this) throw Error("engine.step", "a run is of another batch");
    if (runs[i]->waiting() == 0) throw Error("engine.step", "no position waits for its tail");
    if (std::find(runs.begin(), runs.begin() + static_cast<ptrdiff_t>(i), runs[i]) != runs.begin() + static_cast<ptrdiff_t>(i))
      throw Error("engine.step", "a run is twice in one step");
  }
  const FloatState state;
  compute_tails(runs);
  std::vector<int64_t> tokens(runs.size(), Run::kTrapped);
  std::vector<Op> ops(runs.size(), Op::none);
  model_->pool.run(runs.size(), runs.size() * sizes_.n_vocab * 16, [&](size_t i, size_t) {
    Run& run = *runs[i];
    ops[i] = static_cast<Op>(run.tails_->ops[run.tails_->next]);
    if (ops[i] != Op::none) return;
    const float* logits = run.tails_->logits.as<float>() + run.tails_->next * sizes_.n_vocab;
    tokens[i] = run.sampler_.choose(logits, static_cast<uint32_t>(run.outputs_), run.record_);
    if (tokens[i] == Run::kTrapped) ops[i] = Op::sampler;
  });
  for (size_t i = 0; i < runs.size(); ++i) {
    Run& run = *runs[i];
    Run::Tails& tails = *run.tails_;
    const size_t position = run.n_prompt_ - 1 + run.outputs_, unit = sizes_.n_layers + 1;
    if (tokens[i] == Run::kTrapped) {
      run.trap_ = Trap{position, unit, ops[i]};
      continue;
    }
    const auto id = static_cast<uint32_t>(tokens[i]);
    run.sampler_.see(id);
    std::vector<uint8_t>& ending = tails.endings[tails.next];
    ending = run.record_;
    for (int byte = 0; byte < 4; ++byte) ending.push_back(static_cast<uint8_t>(id >> 8 * byte));
    tails.leaves.emplace_back();
    unhashed_.push_back({&tails.leaves.back(),
                         static_cast<uint32_t>(position),
                         static_cast<uint32_t>(unit),
                         {{tails.logits.as<float>() + tails.next * sizes_.n_vocab, 4 * sizes_.n_vocab, kTile},
                          {ending.data(), ending.size() - 4, kTile},
                          {ending.data() + ending.size() - 4, 4, kTile}},
                         3});
    held_.push_back(run.tails_);
    ++tails.next;
    ++run.outputs_;
  }
  return tokens;
}

}  // namespace aos
