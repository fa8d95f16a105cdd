// A stretch of memory straight from the kernel.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace vidgen {

class Region {
 public:
  // Shared: a memfd that other processes may map; it is gone with the last of them, however they
  // end. Otherwise the memory is this process's alone: a forked child does not have it, so nothing
  // a child does can touch pages the device copies from.
  Region(std::size_t bytes, bool shared, int numa_node, const std::string& name);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // Page-locks all of it for copies of the device.
  void register_for_device(int device);

  // Gives the whole pages between back to the machine until they are written again.
  void drop_pages(unsigned char* from, std::size_t bytes);

  unsigned char* data() const { return data_; }
  std::size_t mapped_bytes() const { return mapped_; }
  int file() const { return file_; }
  bool huge_pages() const { return huge_pages_; }

 private:
  bool map(std::size_t bytes, bool huge, const std::string& name, bool shared);

  const int owner_;  // process
  unsigned char* data_ = nullptr;
  std::size_t mapped_ = 0;
  int file_ = -1;
  bool huge_pages_ = false;
  bool registered_ = false;
  int device_ = 0;
};

}  // namespace vidgen
