// Threads that work on one job, and a caller that waits and detects stuck threads.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "vidgen/io.h"

namespace vidgen::io {

class File {
 public:
  explicit File(int descriptor = -1) : descriptor_(descriptor) {}
  File(File&& other) noexcept : descriptor_(other.release()) {}
  File& operator=(File&& other) noexcept;
  ~File();
  int get() const { return descriptor_; }
  int release();

 private:
  int descriptor_;
};

// A job outlives its caller while one of its threads is stuck in the kernel, so it is shared and
// owns all that a thread may touch but the memory that is written or read.
class Crew {
 public:
  explicit Crew(const Settings& settings) : settings(settings) {}
  virtual ~Crew() = default;

  const Settings settings;
  std::atomic<bool> stopped{false};  // threads that see it start nothing new
  std::atomic<uint64_t> bytes{0}, direct{0}, continued{0}, retried{0};

  struct Operation {
    const char* call;
    const std::string* path;
    uint64_t offset, bytes;
    std::chrono::steady_clock::time_point since;
  };
  using Watch = std::list<Operation>::iterator;
  Watch watch(const char* call, const std::string& path, uint64_t offset, uint64_t bytes);
  void unwatch(Watch operation);

  // What the hook makes of a call: the bytes to go on with, or a negated errno.
  int64_t allowed(const char* call, const std::string& path, uint64_t offset, uint64_t bytes) const;

  // Makes a system call, watched and hooked, again after EINTR and EAGAIN. `real` is given the
  // bytes to transfer and returns its result or a negated errno; so does this.
  int64_t call(const char* name, const std::string& path, uint64_t offset, uint64_t bytes,
               const std::function<int64_t(uint64_t)>& real);

  // Like `call`, for calls whose result is only failure or success: fails the job.
  bool must(const char* name, const std::string& path, const std::function<int()>& real);

  // The first failure is the job's.
  void fail(int code, const std::string& path, const std::string& what);
  void fail_transfer(const char* call, int code, const std::string& path, uint64_t offset,
                     uint64_t bytes);

  void report(Statistics* statistics) const;

  // Runs `work` on several threads at once and waits for all. Throws what failed, or ETIMEDOUT
  // when a system call takes longer than it may; its thread is then left behind.
  static void run(const std::shared_ptr<Crew>& job, int threads, std::function<void()> work);

 private:
  void check_stuck();

  mutable std::mutex mutex_;
  std::condition_variable left_;
  int running_ = 0;
  std::list<Operation> operations_;
  std::unique_ptr<Error> failure_;
};

constexpr uint64_t round_down(uint64_t value) { return value / kPage * kPage; }
constexpr uint64_t round_up(uint64_t value) { return round_down(value + kPage - 1); }

}  // namespace vidgen::io
