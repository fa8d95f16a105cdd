#include "host/region.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <system_error>

#include "host/cuda_driver.h"

namespace vidgen {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The pages go to another node where this one is full, so a failure changes speed only.
void prefer_node(void* data, std::size_t bytes, int node) {
  constexpr std::size_t kBits = sizeof(unsigned long) * CHAR_BIT;
  unsigned long mask[16] = {};
  const auto index = static_cast<std::size_t>(node);
  if (index >= kBits * 16) return;
  mask[index / kBits] = 1UL << (index % kBits);
  syscall(SYS_mbind, data, bytes, MPOL_PREFERRED, mask, kBits * 16 + 1, 0);
}

}  // namespace

Region::Region(std::size_t bytes, bool shared, int numa_node, const std::string& name)
    : owner_(getpid()) {
  // Reserved huge pages where the machine has enough of them, else ordinary ones that the kernel
  // may join.
  if ((bytes < kHugePage || !map(round_up(bytes, kHugePage), true, name, shared)) &&
      !map(round_up(bytes, kPage), false, name, shared)) {
    throw std::system_error(errno, std::generic_category(),
                            name + ": no memory of " + std::to_string(bytes) + " bytes");
  }
  if (!huge_pages_) madvise(data_, mapped_, MADV_HUGEPAGE);
  if (!shared) madvise(data_, mapped_, MADV_DONTFORK);
  if (numa_node >= 0) prefer_node(data_, mapped_, numa_node);
}

bool Region::map(std::size_t bytes, bool huge, const std::string& name, bool shared) {
  int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB : 0);
  int file = -1;
  if (shared) {
    file = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB : 0));
    if (file < 0) return false;
    // If another process truncated the file, access would raise SIGBUS.
    if (ftruncate(file, static_cast<off_t>(bytes)) != 0 ||
        fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
      close(file);
      return false;
    }
  } else {
    flags |= MAP_NORESERVE * !huge;  // pages that are never used cost nothing
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
  if (data == MAP_FAILED) {
    if (file >= 0) close(file);
    return false;
  }
  data_ = static_cast<unsigned char*>(data);
  mapped_ = bytes;
  file_ = file;
  huge_pages_ = huge;
  return true;
}

void Region::register_for_device(int device) {
  cuda_driver().register_memory(device, data_, mapped_);
  registered_ = true;
  device_ = device;
}

void Region::drop_pages(unsigned char* from, std::size_t bytes) {
  if (huge_pages_) return;
  const auto offset = static_cast<std::size_t>(from - data_);
  const std::size_t first = round_up(offset, kPage), end = (offset + bytes) / kPage * kPage;
  // If the kernel cannot, the pages stay, which only costs memory.
  if (first < end) madvise(data_ + first, end - first, file_ >= 0 ? MADV_REMOVE : MADV_DONTNEED);
}

Region::~Region() {
  // A forked child has no such mapping, or shares it; other memory may lie at the address.
  if (getpid() != owner_) return;
  if (registered_) cuda_driver().unregister_memory(device_, data_);
  munmap(data_, mapped_);
  if (file_ >= 0) close(file_);
}

}  // namespace vidgen
