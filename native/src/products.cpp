#include "products.h"

#include <cstring>

namespace aos {
namespace {

// Activations that stay in a core's cache while all weights of an item pass by, and the size of an item's weights.
constexpr size_t kActivationBytes = size_t{512} << 10;
constexpr size_t kItemBytes = size_t{128} << 10;

size_t grown(size_t size) { return size + size / 2; }

}  // namespace

size_t Tiles::padded(size_t positions) { return positions + kTileWidths[2]; }

void Tiles::begin(size_t positions, size_t columns, bool quantised, bool dense) {
  positions_ = positions, columns_ = columns, quantised_ = quantised, dense_ = dense;
  tiles_.clear();
  size_t first = 0;
  // 16s while they fill, at most one more 16 that is mostly full, then 4s, then single positions.
  while (positions - first >= 12) tiles_.push_back({first, 2}), first += 16 < positions - first ? 16 : positions - first;
  while (positions - first >= 3) tiles_.push_back({first, 1}), first += 4 < positions - first ? 4 : positions - first;
  for (; first < positions; ++first) tiles_.push_back({first, 0});
  const Tile& last = tiles_.back();
  const size_t end = last.first + kTileWidths[last.width_index];
  const size_t q_size = quantised ? end * (columns / kBlock) * kTileBlockBytes : 0, d_size = dense ? end * columns * 4 : 0;
  if (q_.size() < q_size) q_ = Memory(grown(q_size));
  if (d_.size() < d_size) d_ = Memory(grown(d_size));
  if (end > positions) {
    const size_t width = kTileWidths[last.width_index];
    if (quantised) {
      const size_t bytes = columns / kBlock * kTileBlockBytes;
      std::memset(q_.data() + last.first * bytes, 0, width * bytes);
    }
    if (dense) std::memset(d_.data() + last.first * columns * 4, 0, width * columns * 4);
  }
}

void Tiles::put(const Kernels& kernels, size_t position, const float* x) {
  size_t index = position / kTileWidths[2];  // the tile, were all of them 16 wide
  if (index >= tiles_.size()) index = tiles_.size() - 1;
  while (tiles_[index].first > position) --index;
  while (index + 1 < tiles_.size() && tiles_[index + 1].first <= position) ++index;
  const Tile& tile = tiles_[index];
  const size_t width = kTileWidths[tile.width_index], slot = position - tile.first;
  if (quantised_) kernels.quantise(x, columns_, q_.data() + tile.first * (columns_ / kBlock) * kTileBlockBytes, width, slot);
  if (dense_) {
    float* at = d_.as<float>() + tile.first * columns_ + slot;
    for (size_t i = 0; i < columns_; ++i) at[width * i] = x[i];
  }
}

void Tiles::multiply(Pool& pool, const Kernels& kernels, const std::vector<Product>& products, const Extra& extra) const {
  struct Item {
    const Product* product;
    size_t first_group, end_group, first_tile, end_tile;
  };
  const size_t blocks = columns_ / kBlock;
  size_t groups = 0;
  for (const Product& p : products) groups += p.matrix->groups();
  const size_t fair = groups / (pool.threads() * 8) + 1;
  std::vector<Item> items;
  for (size_t first_tile = 0; first_tile < tiles_.size();) {
    size_t end_tile = first_tile;
    const size_t bytes = dense_ ? columns_ * 4 : blocks * kTileBlockBytes;
    for (size_t held = 0; end_tile < tiles_.size(); ++end_tile) {
      held += kTileWidths[tiles_[end_tile].width_index] * bytes;
      if (end_tile > first_tile && held > kActivationBytes) break;
    }
    for (const Product& p : products) {
      const size_t wanted = kItemBytes / p.matrix->bytes_of_group() + 1;
      const size_t step = wanted < fair ? wanted : fair;
      for (size_t g = 0; g < p.matrix->groups(); g += step)
        items.push_back({&p, g, g + step < p.matrix->groups() ? g + step : p.matrix->groups(), first_tile, end_tile});
    }
    first_tile = end_tile;
  }
  size_t bytes = 0;
  for (const Product& p : products) bytes += p.matrix->groups() * p.matrix->bytes_of_group() * ((positions_ + 3) / 4);
  pool.run(extra.size + items.size(), bytes, [&](size_t index, size_t) {
    if (index < extra.size) return extra.work(index);
    const Item& item = items[index - extra.size];
    const Matrix& matrix = *item.product->matrix;
    const size_t stride = matrix.padded_rows();
    const auto& product = kernels.product[static_cast<size_t>(matrix.type())];
    for (size_t g = item.first_group; g < item.end_group; ++g)
      for (size_t t = item.first_tile; t < item.end_tile; ++t) {
        const Tile& tile = tiles_[t];
        const void* x = matrix.dense() ? static_cast<const void*>(d_.as<float>() + tile.first * columns_)
                                       : q_.data() + tile.first * blocks * kTileBlockBytes;
        product[tile.width_index](matrix.group(g), x, blocks, item.product->y + tile.first * stride + g * kRows, stride);
      }
  });
}

}  // namespace aos
