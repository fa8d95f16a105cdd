// The free ranges of a block of memory: merged with their neighbours, allocated by best fit.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <utility>

namespace vidgen {

class FreePieces {
 public:
  // The offset of the smallest piece that has room for `size` bytes at a multiple of `align`.
  bool find(std::size_t size, std::size_t align, std::size_t& offset) const;
  // Takes [offset, offset + size), which lies in one piece, out of it.
  void cut(std::size_t offset, std::size_t size);
  void release(std::size_t offset, std::size_t size);
  std::size_t largest() const;

 private:
  void add(std::size_t offset, std::size_t size);
  void remove(std::size_t offset);

  std::map<std::size_t, std::size_t> by_offset_;           // offset to size
  std::set<std::pair<std::size_t, std::size_t>> by_size_;  // (size, offset)
};

}  // namespace vidgen
