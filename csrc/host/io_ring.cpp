#include "host/io_ring.h"

#include "vidgen/io.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#define VIDGEN_HAS_URING
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace vidgen::io {

#ifdef VIDGEN_HAS_URING

namespace {

// Older headers do not know the numbers; they are the same on every architecture.
constexpr long kSetup = 425;
constexpr long kEnter = 426;
constexpr unsigned kFeatureRwCurPos = 1u << 3;  // came with IORING_OP_WRITE, in Linux 5.6

unsigned* at(void* base, uint32_t offset) {
  return reinterpret_cast<unsigned*>(static_cast<char*>(base) + offset);
}

[[noreturn]] void refuse(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

Ring::Ring(unsigned entries) {
  io_uring_params parameters;
  std::memset(&parameters, 0, sizeof parameters);
  descriptor_ = static_cast<int>(syscall(kSetup, entries, &parameters));
  if (descriptor_ < 0) refuse("io_uring_setup");
  // Both queues have been one mapping since Linux 5.4.
  if ((parameters.features & IORING_FEAT_SINGLE_MMAP) == 0 ||
      (parameters.features & kFeatureRwCurPos) == 0) {
    close(descriptor_);
    errno = ENOSYS;
    refuse("io_uring before Linux 5.6");
  }
  queues_bytes_ =
      std::max<std::size_t>(parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned),
                            parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe));
  submissions_bytes_ = parameters.sq_entries * sizeof(io_uring_sqe);
  const int access = PROT_READ | PROT_WRITE;
  queues_ = mmap(nullptr, queues_bytes_, access, MAP_SHARED | MAP_POPULATE, descriptor_,
                 IORING_OFF_SQ_RING);
  void* submissions = mmap(nullptr, submissions_bytes_, access, MAP_SHARED | MAP_POPULATE,
                           descriptor_, IORING_OFF_SQES);
  if (queues_ == MAP_FAILED || submissions == MAP_FAILED) {
    const int code = errno;
    if (queues_ != MAP_FAILED) munmap(queues_, queues_bytes_);
    if (submissions != MAP_FAILED) munmap(submissions, submissions_bytes_);
    close(descriptor_);
    errno = code;
    refuse("mapping the queues of io_uring");
  }
  submissions_ = static_cast<io_uring_sqe*>(submissions);
  submit_tail_ = at(queues_, parameters.sq_off.tail);
  submit_array_ = at(queues_, parameters.sq_off.array);
  submit_mask_ = *at(queues_, parameters.sq_off.ring_mask);
  complete_head_ = at(queues_, parameters.cq_off.head);
  complete_tail_ = at(queues_, parameters.cq_off.tail);
  complete_mask_ = *at(queues_, parameters.cq_off.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(at(queues_, parameters.cq_off.cqes));
}

Ring::~Ring() {
  munmap(submissions_, submissions_bytes_);
  munmap(queues_, queues_bytes_);
  close(descriptor_);
}

int Ring::enter(unsigned submit, unsigned wait, unsigned flags) {
  const long result = syscall(kEnter, descriptor_, submit, wait, flags, nullptr, 0);
  return result < 0 ? -errno : static_cast<int>(result);
}

void Ring::write(int descriptor, const void* data, uint32_t bytes, uint64_t offset, uint64_t tag) {
  const unsigned tail = *submit_tail_;
  io_uring_sqe& entry = submissions_[tail & submit_mask_];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = IORING_OP_WRITE;
  entry.fd = descriptor;
  entry.addr = reinterpret_cast<uintptr_t>(data);
  entry.len = bytes;
  entry.off = offset;
  entry.user_data = tag;
  submit_array_[tail & submit_mask_] = tail & submit_mask_;
  __atomic_store_n(submit_tail_, tail + 1, __ATOMIC_RELEASE);
  for (;;) {
    const int taken = enter(1, 0, 0);
    if (taken == 1) return;
    // EBUSY and EAGAIN: the kernel lacks memory for the moment.
    if (taken != 0 && taken != -EINTR && taken != -EAGAIN && taken != -EBUSY) {
      errno = -taken;
      refuse("io_uring_enter");
    }
  }
}

int64_t Ring::wait(uint64_t* tag) {
  const unsigned head = *complete_head_;
  while (__atomic_load_n(complete_tail_, __ATOMIC_ACQUIRE) == head) {
    const int result = enter(0, 1, IORING_ENTER_GETEVENTS);
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
      errno = -result;
      refuse("io_uring_enter");
    }
  }
  const io_uring_cqe& entry = completions_[head & complete_mask_];
  *tag = entry.user_data;
  const int64_t result = entry.res;
  __atomic_store_n(complete_head_, head + 1, __ATOMIC_RELEASE);
  return result;
}

std::string why_not_uring() {
  try {
    Ring ring(1);
    return "";
  } catch (const std::system_error& error) {
    const int code = error.code().value();
    const bool blocked = code == EPERM || code == EACCES;
    return std::string(error.what()) +
           (blocked ? "; blocked by a seccomp profile or kernel.io_uring_disabled" : "");
  }
}

#else

Ring::Ring(unsigned) {
  throw std::system_error(ENOSYS, std::generic_category(), "built without io_uring");
}
Ring::~Ring() = default;
void Ring::write(int, const void*, uint32_t, uint64_t, uint64_t) {}
int64_t Ring::wait(uint64_t*) { return -ENOSYS; }
std::string why_not_uring() { return "built on a system without io_uring"; }

#endif

}  // namespace vidgen::io
