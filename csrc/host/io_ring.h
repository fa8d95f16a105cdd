// The part of io_uring that writing files needs, by bare system calls.
#pragma once

#include <cstddef>
#include <cstdint>

struct io_uring_sqe;
struct io_uring_cqe;

namespace vidgen::io {

class Ring {
 public:
  explicit Ring(unsigned entries);  // throws std::system_error
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Hands a write to the kernel. At most `entries` may be under way.
  void write(int descriptor, const void* data, uint32_t bytes, uint64_t offset, uint64_t tag);

  // Waits for one to complete: its tag, and its result or negated errno.
  int64_t wait(uint64_t* tag);

 private:
  int enter(unsigned submit, unsigned wait, unsigned flags);

  int descriptor_ = -1;
  void* queues_ = nullptr;
  std::size_t queues_bytes_ = 0;
  io_uring_sqe* submissions_ = nullptr;
  std::size_t submissions_bytes_ = 0;
  io_uring_cqe* completions_ = nullptr;
  unsigned *submit_tail_ = nullptr, *submit_array_ = nullptr;
  unsigned *complete_head_ = nullptr, *complete_tail_ = nullptr;
  unsigned submit_mask_ = 0, complete_mask_ = 0;
};

}  // namespace vidgen::io
