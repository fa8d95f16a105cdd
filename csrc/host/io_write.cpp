#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <vector>

#include "host/crc32c.h"
#include "host/io_crew.h"
#include "host/io_ring.h"

#ifndef O_DIRECT
#define O_DIRECT 0  // then no directory takes it: see why_not_direct
#endif

namespace vidgen::io {
namespace {

constexpr int kLeastProgress = 64;  // short transfers in a row without one page of progress

struct Block {
  std::size_t file;
  uint64_t begin, end;  // in the file; what is still to be written
  int idle = 0;         // short transfers without progress
};

class WriteJob : public Crew {
 public:
  WriteJob(std::vector<OutputFile> files, const Settings& settings)
      : Crew(settings), files_(std::move(files)), open_(files_.size()), left_(files_.size()) {
    for (std::size_t i = 0; i < files_.size(); ++i) {
      const uint64_t end = length(i);
      if (end == 0) throw std::invalid_argument(files_[i].path + ": nothing to write");
      if (settings.direct && reinterpret_cast<uintptr_t>(files_[i].data) % kPage != 0) {
        throw std::invalid_argument(files_[i].path + ": its memory does not begin on a page");
      }
      for (uint64_t begin = 0; begin < end; begin += settings.block, ++left_[i]) {
        blocks_.push_back({i, begin, std::min<uint64_t>(begin + settings.block, end)});
      }
      crcs_.emplace_back(files_[i].checked.size());
    }
  }

  // On its own thread like the rest: to open a file can take for ever, too.
  void open_all() {
    for (std::size_t i = 0; i < files_.size() && !stopped; ++i) {
      const std::string& path = files_[i].path;
      const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | (settings.direct ? O_DIRECT : 0);
      must("open", path, [&] {
        const int descriptor = ::open(path.c_str(), flags, 0644);
        if (descriptor >= 0) open_[i] = File(descriptor);
        return descriptor;
      });
      if (!stopped) allocate(i);
    }
  }

  void work() { settings.uring ? write_with_ring() : write_one_by_one(); }

  std::vector<std::vector<uint32_t>> take_crcs() { return std::move(crcs_); }

 private:
  // With O_DIRECT the last page is written whole and then cut off.
  uint64_t length(std::size_t file) const {
    return settings.direct ? round_up(files_[file].bytes) : files_[file].bytes;
  }

  // A full disk shows at once, and writes that extend no file need not wait for each other.
  void allocate(std::size_t file) {
#ifdef __linux__
    must("allocate", files_[file].path, [&] {
      const int status = fallocate(open_[file].get(), 0, 0, static_cast<off_t>(length(file)));
      return status < 0 && (errno == EOPNOTSUPP || errno == ENOSYS) ? 0 : status;
    });
#else
    (void)file;
#endif
  }

  bool take(Block* block) {
    if (stopped) return false;
    const std::size_t at = next_.fetch_add(1);
    if (at >= blocks_.size()) return false;
    *block = blocks_[at];
    checksum(*block);
    return true;
  }

  // The parts that begin in the block, just before it is written: in page-cache writes the kernel
  // then copies from the processor's cache.
  void checksum(const Block& block) {
    const OutputFile& file = files_[block.file];
    auto at = std::lower_bound(file.checked.begin(), file.checked.end(), block.begin,
                               [](const Range& range, uint64_t end) { return range.begin < end; });
    for (; at != file.checked.end() && at->begin < block.end; ++at) {
      crcs_[block.file][static_cast<std::size_t>(at - file.checked.begin())] =
          crc32c(file.data + at->begin, at->bytes);
    }
  }

  // Takes note of a transfer's result; says whether the rest of the block is to be written.
  bool advance(Block& block, int64_t result) {
    const OutputFile& file = files_[block.file];
    const uint64_t wanted = block.end - block.begin;
    if (result < 0 || static_cast<uint64_t>(result) > wanted) {
      const int code = result < 0 ? static_cast<int>(-result) : EIO;
      fail_transfer("write", code, file.path, block.begin, wanted);
      return false;
    }
    // O_DIRECT goes on from a page; what lies before it is written once more.
    uint64_t done = static_cast<uint64_t>(result);
    if (done < wanted) {
      continued++;
      if (settings.direct) done = round_down(done);
      block.idle = done == 0 ? block.idle + 1 : 0;
      if (block.idle == kLeastProgress) {
        fail(EIO, file.path,
             "write of " + std::to_string(wanted) + " bytes at offset " +
                 std::to_string(block.begin) + " makes no progress");
        return false;
      }
    }
    bytes += done;
    if (settings.direct) direct += done;
    block.begin += done;
    if (block.begin < block.end) return !stopped;
    finish(block.file);
    return false;
  }

  void finish(std::size_t i) {
    start_writeback(i);  // before the count: whoever brings it to zero closes the file
    if (--left_[i] != 0) return;
    const std::string& path = files_[i].path;
    const int descriptor = open_[i].get();
    if (length(i) != files_[i].bytes && !must("truncate", path, [&] {
          return ftruncate(descriptor, static_cast<off_t>(files_[i].bytes));
        })) {
      return;
    }
    if (!must("fsync", path, [&] { return fsync(descriptor); })) return;
    // Network file systems tell of a full disk as late as this.
    if (close(open_[i].release()) < 0 && errno != EINTR) {
      fail(errno, path, std::string("close: ") + std::strerror(errno));
    }
  }

  // What went to the page cache is sent on its way at once, not all of it at the fsync.
  void start_writeback(std::size_t file) {
#ifdef __linux__
    if (!settings.direct) sync_file_range(open_[file].get(), 0, 0, SYNC_FILE_RANGE_WRITE);
#else
    (void)file;
#endif
  }

  // O_DIRECT transfers whole pages, so a hook's part of a page is none.
  uint64_t whole(uint64_t n) const { return settings.direct ? round_down(n) : n; }

  void write_one_by_one() {
    Block block;
    while (take(&block)) {
      const OutputFile& file = files_[block.file];
      int64_t result;
      do {
        result = call("write", file.path, block.begin, block.end - block.begin, [&](uint64_t n) {
          const ssize_t written = pwrite(open_[block.file].get(), file.data + block.begin, whole(n),
                                         static_cast<off_t>(block.begin));
          return static_cast<int64_t>(written < 0 ? -errno : written);
        });
      } while (advance(block, result));
    }
  }

  struct Slot {
    Block block;
    Watch watched;
  };

  struct Answer {
    uint64_t slot;
    int64_t result;
  };

  void write_with_ring() {
    Ring ring(settings.depth);
    std::vector<Slot> slots(settings.depth);
    std::vector<uint64_t> idle;
    for (uint64_t i = settings.depth; i-- > 0;) idle.push_back(i);
    std::deque<Answer> hooked;  // answers that a hook gave in the kernel's place
    unsigned in_kernel = 0;
    const auto start = [&](uint64_t i) {
      const Block& block = slots[i].block;
      const OutputFile& file = files_[block.file];
      const uint64_t wanted = block.end - block.begin;
      slots[i].watched = watch("write", file.path, block.begin, wanted);
      const int64_t n = allowed("write", file.path, block.begin, wanted);
      const uint64_t now = n < 0 || stopped ? 0 : whole(static_cast<uint64_t>(n));
      if (now == 0) {
        hooked.push_back({i, std::min<int64_t>(n, 0)});
        return;
      }
      ring.write(open_[block.file].get(), file.data + block.begin, static_cast<uint32_t>(now),
                 block.begin, i);
      ++in_kernel;
    };
    for (;;) {
      Block block;
      while (!idle.empty() && take(&block)) {
        slots[idle.back()].block = block;
        const uint64_t i = idle.back();
        idle.pop_back();
        start(i);
      }
      Answer answer;
      if (!hooked.empty()) {
        answer = hooked.front();
        hooked.pop_front();
      } else if (in_kernel != 0) {
        answer.result = ring.wait(&answer.slot);
        --in_kernel;
      } else {
        return;
      }
      Slot& slot = slots[answer.slot];
      unwatch(slot.watched);
      if ((answer.result == -EINTR || answer.result == -EAGAIN) && !stopped) {
        retried++;
        start(answer.slot);
      } else if (advance(slot.block, answer.result)) {
        start(answer.slot);
      } else {
        idle.push_back(answer.slot);
      }
    }
  }

  const std::vector<OutputFile> files_;
  std::vector<File> open_;
  std::vector<std::atomic<uint64_t>> left_;  // blocks of each file
  std::vector<Block> blocks_;
  std::vector<std::vector<uint32_t>> crcs_;
  std::atomic<std::size_t> next_{0};
};

}  // namespace

std::vector<std::vector<uint32_t>> write_files(std::vector<OutputFile> files,
                                               const Settings& settings, Statistics* statistics) {
  const auto job = std::make_shared<WriteJob>(std::move(files), settings);
  Crew::run(job, 1, [at = job.get()] { at->open_all(); });
  Crew::run(job, settings.threads, [at = job.get()] { at->work(); });
  job->report(statistics);
  return job->take_crcs();
}

std::string why_not_direct(const std::string& directory) {
  if (O_DIRECT == 0) return "this system has no O_DIRECT";
  const std::string path = directory + "/.vidgen-probe-" + std::to_string(getpid());
  const File file(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600));
  const int refused = errno;
  unlink(path.c_str());  // also where O_DIRECT is refused only after the file was made
  if (file.get() < 0) return std::string("open: ") + std::strerror(refused);
  alignas(kPage) static const unsigned char page[kPage] = {};
  if (pwrite(file.get(), page, kPage, 0) == static_cast<ssize_t>(kPage)) return "";
  return std::string("write: ") + std::strerror(errno);
}

}  // namespace vidgen::io
