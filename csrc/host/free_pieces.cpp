#include "vidgen/free_pieces.h"

#include <iterator>

namespace vidgen {

bool FreePieces::find(std::size_t size, std::size_t align, std::size_t& offset) const {
  for (auto piece = by_size_.lower_bound({size, 0}); piece != by_size_.end(); ++piece) {
    const std::size_t start = (piece->second + align - 1) / align * align;
    if (start + size <= piece->second + piece->first) {
      offset = start;
      return true;
    }
  }
  return false;
}

void FreePieces::cut(std::size_t offset, std::size_t size) {
  const auto piece = std::prev(by_offset_.upper_bound(offset));
  const auto [start, length] = *piece;
  remove(start);
  if (start < offset) add(start, offset - start);
  if (offset + size < start + length) add(offset + size, start + length - offset - size);
}

void FreePieces::release(std::size_t offset, std::size_t size) {
  const auto after = by_offset_.find(offset + size);
  if (after != by_offset_.end()) {
    size += after->second;
    remove(after->first);
  }
  const auto next = by_offset_.lower_bound(offset);
  if (next != by_offset_.begin()) {
    const auto [start, length] = *std::prev(next);
    if (start + length == offset) {
      remove(start);
      offset = start;
      size += length;
    }
  }
  add(offset, size);
}

std::size_t FreePieces::largest() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }

void FreePieces::add(std::size_t offset, std::size_t size) {
  by_offset_[offset] = size;
  by_size_.insert({size, offset});
}

void FreePieces::remove(std::size_t offset) {
  const auto piece = by_offset_.find(offset);
  by_size_.erase({piece->second, offset});
  by_offset_.erase(piece);
}

}  // namespace vidgen
