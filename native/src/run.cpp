#include "run.h"

#include <algorithm>

#include "batch.h"
#include "error.h"
#include "leaf.h"

namespace aos {

Run::Run(std::shared_ptr<Batch> batch, const std::vector<uint32_t>& prompt, const SamplingRules& rules)
    : batch_(std::move(batch)), model_(batch_->model()), n_prompt_(prompt.size()),
      sampler_(model_->kernels, model_->sizes.n_vocab, rules) {
  if (prompt.empty() || prompt.size() >= model_->sizes.n_ctx)
    throw Error("engine.prompt", "the prompt does not fit the context");
  for (const uint32_t token : prompt) {
    if (token >= model_->sizes.n_vocab) throw Error("engine.token", "a token is not in the vocabulary");
    sampler_.see(token);
  }
}

void Run::take_pages(size_t positions) {
  while (pages_.size() * kPage < positions) pages_.push_back(model_->pages->take());
}

void Run::reserve(size_t positions) {
  const Batch::Turn turn(*batch_);
  if (positions > model_->sizes.n_ctx) throw Error("engine.step", "the positions do not fit the context");
  take_pages(positions);
}

void Run::adopt(const std::vector<std::shared_ptr<Page>>& pages, size_t positions) {
  const Batch::Turn turn(*batch_);
  if (length_ > 0 || !pages_.empty() || positions >= n_prompt_ || pages.size() != (positions + kPage - 1) / kPage)
    throw Error("engine.step", "the pages do not lead the prompt");
  for (const auto& page : pages)
    if (page->owner != model_->pages) throw Error("engine.step", "a page is of another model");
  std::vector<std::shared_ptr<Page>> taken(pages.begin(), pages.begin() + static_cast<ptrdiff_t>(positions / kPage));
  if (positions % kPage > 0) {
    taken.push_back(model_->pages->take());
    batch_->flush();  // leaves of the page may still wait
    batch_->copy_positions(*pages.back(), *taken.back(), positions % kPage);
  }
  pages_ = std::move(taken);
  length_ = positions;
}

std::shared_ptr<Page> Run::page(size_t index) const {
  if (index * kPage >= length_) throw Error("engine.step", "nothing of the page is computed");
  return pages_[index];
}

void Run::watch(const std::vector<size_t>& units) {
  const Batch::Turn turn(*batch_);
  if (length_ > 0 || !pages_.empty()) throw Error("engine.step", "the run has begun");
  for (const size_t unit : units) {
    if (unit > model_->sizes.n_layers) throw Error("engine.step", "the unit has no residual");
    watched_[unit];
  }
}

const std::vector<float>& Run::watched(size_t unit) const {
  const auto found = watched_.find(unit);
  if (found == watched_.end()) throw Error("engine.step", "the unit is not watched");
  return found->second;
}

void Run::copy_cache(size_t layer, size_t first, size_t end, uint16_t* keys, uint16_t* values) const {
  const Batch::Turn turn(*batch_);
  const Sizes& sizes = model_->sizes;
  if (layer >= sizes.n_layers || first > end || end > length_) throw Error("engine.step", "the positions are not computed");
  const size_t hd = sizes.head_width;
  for (size_t position = first; position < end; ++position) {
    const Page& page = *pages_[position / kPage];
    const size_t inside = position % kPage;
    for (size_t head = 0; head < sizes.n_kv_heads; ++head) {
      const uint16_t* k = batch_->keys(page, layer, head) + inside / kRows * hd * kRows + inside % kRows;
      for (size_t i = 0; i < hd; ++i) *keys++ = k[i * kRows];
      values = std::copy_n(batch_->values(page, layer, head) + inside * sizes.padded_head(), hd, values);
    }
  }
}

void Run::append_leaves(std::vector<Digest>& out, size_t position, size_t units) const {
  const size_t kept = model_->sizes.n_layers + 1;
  const Digest* from = pages_[position / kPage]->leaves.data() + position % kPage * kept;
  out.insert(out.end(), from, from + (units < kept ? units : kept));
  if (units <= kept) return;
  if (position + 1 < n_prompt_) {
    out.push_back(leaf_hash(position, kept));
  } else {
    const size_t output = position + 1 - n_prompt_;
    if (output >= outputs_) throw Error("engine.step", "a position has no token yet");
    out.push_back(tails_->leaves[output]);
  }
}

std::vector<Digest> Run::leaves(size_t positions) {
  const Batch::Turn turn(*batch_);
  batch_->flush();
  if (positions > length_) throw Error("engine.step", "the positions are not computed");
  std::vector<Digest> out;
  out.reserve(positions * (model_->sizes.n_layers + 2));
  for (size_t position = 0; position < positions; ++position) append_leaves(out, position, model_->sizes.n_layers + 2);
  return out;
}

std::vector<Digest> Run::leaves_to_trap() {
  const Batch::Turn turn(*batch_);
  batch_->flush();
  if (!trap_) throw Error("engine.step", "the run has not trapped");
  std::vector<Digest> out;
  for (size_t position = 0; position < trap_->position; ++position) append_leaves(out, position, model_->sizes.n_layers + 2);
  if (trap_->unit > 0) append_leaves(out, trap_->position, trap_->unit);
  out.push_back(trap_hash(trap_->position, trap_->unit, number(trap_->op)));
  return out;
}

}  // namespace aos
