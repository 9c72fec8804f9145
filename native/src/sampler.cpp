#include "sampler.h"

#include <algorithm>
#include <cstring>

namespace aos {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Sorts like the value, descending; -0 and +0 are equal.
uint32_t rank_of(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return ~(bits >> 31 ? ~bits : bits | 0x80000000u);
}

template <class T>
void append(std::vector<uint8_t>& out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  out.insert(out.end(), bytes, bytes + sizeof(T) * count);
}

}  // namespace

uint32_t philox(uint64_t key, uint32_t step) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = step, c1 = 0, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xd2511f53} * c0, right = uint64_t{0xcd9e8d57} * c2;
    c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(right);
    c3 = static_cast<uint32_t>(left);
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  return c0;
}

Sampler::Sampler(const Kernels& kernels, size_t vocabulary, const SamplingRules& rules)
    : kernels_(kernels), size_(vocabulary), chunks_((vocabulary + kChunk - 1) / kChunk), rules_(rules), seen_(vocabulary),
      adjusted_(vocabulary) {
  if (rules.temperature == 0.0f) return;
  weight_.resize(size_);
  rank_.resize(size_);
  masses_.resize(chunks_);
  // Ids that do not exist keep the lowest rank, which no cut reaches, and weight +0.
  by_offset_.assign(kChunk * chunks_, 0.0f);
  rank_by_offset_.assign(kChunk * chunks_, UINT32_MAX);
}

int64_t Sampler::choose(const float* logits, uint32_t step, std::vector<uint8_t>& record) {
  record.clear();
  for (size_t i = 0; i < size_; ++i) adjusted_[i] = logits[i];
  if (rules_.penalise) {
    for (size_t i = 0; i < size_; ++i)
      if (seen_[i]) adjusted_[i] = logits[i] > 0.0f ? logits[i] / rules_.penalty : logits[i] * rules_.penalty;
  }
  if (rules_.temperature != 0.0f)
    for (size_t i = 0; i < size_; ++i) adjusted_[i] = adjusted_[i] / rules_.temperature;
  if (!kernels_.finite(adjusted_.data(), size_)) return -1;
  size_t best = 0;
  for (size_t i = 1; i < size_; ++i)
    if (adjusted_[i] > adjusted_[best]) best = i;
  if (rules_.temperature == 0.0f) return static_cast<int64_t>(best);

  const float largest = adjusted_[best];
  kernels_.exp_minus(adjusted_.data(), size_, largest, weight_.data());
  for (size_t i = 0; i < size_; ++i) rank_[i] = rank_of(adjusted_[i]);
  for (size_t i = 0; i < size_; ++i) {
    const size_t at = i % kChunk * chunks_ + i / kChunk;
    by_offset_[at] = weight_[i];
    rank_by_offset_[at] = rank_[i];
  }
  uint64_t cut = cut_to(rules_.top_k == 0 ? size_ : std::min<size_t>(rules_.top_k, size_));
  if (rules_.min_p > 0.0f) cut = cut_below_min_p(cut);
  const uint64_t before = cut;
  if (rules_.limit_top_p) cut = shortest(cut, rules_.top_p * mass(cut));

  const uint32_t u24 = philox(rules_.seed, step) >> 8;
  const float threshold = (static_cast<float>(u24) * 0x1p-24f) * mass(cut);
  const uint32_t token = pick(cut, threshold);
  const auto before_member = static_cast<uint32_t>(before), after_member = static_cast<uint32_t>(cut);
  append(record, &u24, 1);
  append(record, &largest, 1);
  append(record, &before_member, 1);
  append(record, &after_member, 1);
  append(record, chunk_masses(before).data(), chunks_);
  append(record, chunk_masses(cut).data(), chunks_);
  return token;
}

// Per chunk of 256 ids: the weights of the members, in id order from +0. Adding +0 for the others changes nothing: no sum
// can be -0. All chunks advance together, which is an order of its own for none of them.
const std::vector<float>& Sampler::chunk_masses(uint64_t cut) {
  const auto rank = static_cast<uint32_t>(cut >> 32), last = static_cast<uint32_t>(cut);
  std::fill(masses_.begin(), masses_.end(), 0.0f);
  float* masses = masses_.data();
  for (size_t offset = 0; offset < kChunk; ++offset) {
    const float* weights = by_offset_.data() + offset * chunks_;
    const uint32_t* ranks = rank_by_offset_.data() + offset * chunks_;
    // Ids of this offset that are at most `last` lie in the first `ties` chunks.
    const size_t ties = std::min<size_t>(last / kChunk + (offset <= last % kChunk ? 1 : 0), chunks_);
    for (size_t c = 0; c < ties; ++c) masses[c] = masses[c] + (ranks[c] <= rank ? weights[c] : 0.0f);
    for (size_t c = ties; c < chunks_; ++c) masses[c] = masses[c] + (ranks[c] < rank ? weights[c] : 0.0f);
  }
  return masses_;
}

float Sampler::mass(uint64_t cut) {
  float total = 0.0f;
  for (const float chunk : chunk_masses(cut)) total = total + chunk;
  return total;
}

// The key of the `count`-th id in the order.
uint64_t Sampler::cut_to(size_t count) {
  if (count == size_) {
    uint64_t most = 0;
    for (size_t i = 0; i < size_; ++i) most = std::max(most, key(i));
    return most;
  }
  sorted_.resize(size_);
  for (size_t i = 0; i < size_; ++i) sorted_[i] = key(i);
  std::nth_element(sorted_.begin(), sorted_.begin() + static_cast<ptrdiff_t>(count - 1), sorted_.end());
  return sorted_[count - 1];
}

// The last member before the first whose weight is below min_p. (The first member of all has weight 1.)
uint64_t Sampler::cut_below_min_p(uint64_t cut) {
  uint64_t first_below = UINT64_MAX;
  for (size_t i = 0; i < size_; ++i)
    if (weight_[i] < rules_.min_p) first_below = std::min(first_below, key(i));
  if (first_below > cut) return cut;
  uint64_t last = 0;
  for (size_t i = 0; i < size_; ++i)
    if (key(i) < first_below) last = std::max(last, key(i));
  return last;
}

// The shortest non-empty prefix whose mass is at least `target`. Masses never fall as a prefix grows, so it may be found
// by halving; sums in another order only propose where to look.
uint64_t Sampler::shortest(uint64_t cut, float target) {
  if (!(target > 0.0f)) {
    uint64_t first = cut;
    for (size_t i = 0; i < size_; ++i) first = std::min(first, key(i));
    return first;
  }
  constexpr int kBits = 11;
  const auto bucket_of = [](uint32_t rank) { return rank >> (32 - kBits); };
  std::vector<double> buckets(size_t{1} << kBits, 0.0);
  for (size_t i = 0; i < size_; ++i)
    if (key(i) <= cut) buckets[bucket_of(rank_[i])] += weight_[i];
  size_t bucket = 0;
  double sum = buckets[0];
  while (bucket + 1 < buckets.size() && sum < target) sum += buckets[++bucket];

  // Prefixes end in `low` .. `high`; the proposal holds if the mass crosses the target inside it.
  const uint64_t first = uint64_t{bucket} << (64 - kBits);
  uint64_t low = first, high = first + ((uint64_t{1} << (64 - kBits)) - 1);
  if (low > 0 && mass(low - 1) >= target) {
    high = low - 1;
    low = 0;
  } else if (mass(std::min(high, cut)) < target) {
    low = high + 1;
    high = cut;
  }
  high = std::min(high, cut);
  sorted_.clear();
  for (size_t i = 0; i < size_; ++i)
    if (key(i) >= low && key(i) <= high) sorted_.push_back(key(i));
  std::sort(sorted_.begin(), sorted_.end());
  size_t from = 0, to = sorted_.size() - 1;
  while (from < to) {
    const size_t middle = (from + to) / 2;
    if (mass(sorted_[middle]) >= target)
      to = middle;
    else
      from = middle + 1;
  }
  return sorted_[from];
}

// The lowest member whose running mass exceeds the threshold, else the highest member.
uint32_t Sampler::pick(uint64_t cut, float threshold) {
  float before = 0.0f;
  uint32_t highest = 0;
  for (size_t start = 0; start < size_; start += kChunk) {
    float inside = 0.0f;
    for (size_t i = start; i < std::min(start + kChunk, size_); ++i) {
      if (key(i) > cut) continue;
      inside = inside + weight_[i];
      highest = static_cast<uint32_t>(i);
      if (before + inside > threshold) return highest;
    }
    before = before + inside;
  }
  return highest;
}

}  // namespace aos
