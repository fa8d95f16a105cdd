// Whole reads and writes at an offset of a file.
#pragma once

#include <cstddef>

#include "vidgen/lane.h"

namespace vidgen {

// All of the bytes, over as many calls as it takes; throws std::system_error, also where the file
// ends before.
void write_all(FileRange to, const void* source, std::size_t bytes);
void read_all(void* destination, FileRange from, std::size_t bytes);

// The same file by a number of our own: the caller may close his meanwhile.
class OwnFile {
 public:
  explicit OwnFile(int file);
  ~OwnFile();
  OwnFile(const OwnFile&) = delete;
  OwnFile& operator=(const OwnFile&) = delete;
  int get() const { return file_; }

 private:
  int file_;
};

}  // namespace vidgen
