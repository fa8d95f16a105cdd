#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "host/crc32c.h"
#include "host/io_crew.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

namespace vidgen::io {
namespace {

// A mapping of a file, only to ask which of its pages are in memory: it is never read through.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (at_ != nullptr) munmap(at_, bytes_);
  }

  void map(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) < 0 || status.st_size == 0) return;
    bytes_ = static_cast<std::size_t>(status.st_size);
    void* at = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
    if (at != MAP_FAILED) at_ = static_cast<unsigned char*>(at);
  }

  bool mapped() const { return at_ != nullptr; }

  // Whether most of the bytes are in the page cache, judged by pages evenly spaced among them.
  bool mostly_cached(uint64_t begin, uint64_t end) const {
    static const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    constexpr uint64_t kSamples = 16;
    end = std::min<uint64_t>(end, bytes_);
    if (begin >= end) return true;  // past the end of the file: any read says so
    const uint64_t step = std::max((end - begin) / kSamples, page);
    int cached = 0, asked = 0;
    for (uint64_t at = begin; at < end; at += step, ++asked) {
      unsigned char found = 0;
      if (mincore(at_ + at / page * page, 1, &found) < 0) return true;
      cached += found & 1;
    }
    return 2 * cached >= asked;
  }

 private:
  unsigned char* at_ = nullptr;
  std::size_t bytes_ = 0;
};

// A file that is read through the page cache or around it.
struct InputFile {
  std::string path;
  File buffered, direct;
  int open_error = 0;
  Mapping pages;
};

struct Memory {
  unsigned char* data = nullptr;
  ~Memory() { std::free(data); }
  unsigned char* of(std::size_t bytes) {
    if (data == nullptr) data = static_cast<unsigned char*>(std::aligned_alloc(kPage, bytes));
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }
};

struct Unit {  // consecutive chunks of a span
  std::size_t span;
  uint64_t begin, end;  // in the span
};

class ReadJob : public Crew {
 public:
  ReadJob(std::vector<std::string> paths, std::vector<Span> spans, bool keep_going,
          const Settings& settings)
      : Crew(settings), spans_(std::move(spans)), keep_going_(keep_going), files_(paths.size()) {
    for (std::size_t i = 0; i < paths.size(); ++i) files_[i].path = std::move(paths[i]);
    for (std::size_t i = 0; i < spans_.size(); ++i) {
      const Span& span = spans_[i];
      const uint64_t step = std::max(settings.block / span.chunk, uint64_t{1}) * span.chunk;
      largest_ = std::max(largest_, std::min(step, span.bytes));
      for (uint64_t begin = 0; begin < span.bytes; begin += step) {
        units_.push_back({i, begin, std::min(begin + step, span.bytes)});
      }
    }
    // As the files lie on the disk.
    std::sort(units_.begin(), units_.end(), [this](const Unit& a, const Unit& b) {
      const Span &x = spans_[a.span], &y = spans_[b.span];
      return x.file != y.file ? x.file < y.file : x.offset + a.begin < y.offset + b.begin;
    });
  }

  void open_all() {
    for (InputFile& file : files_) {
      if (stopped) return;
      const int64_t result = call("open", file.path, 0, 0, [&](uint64_t) {
        file.buffered = File(open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
        return static_cast<int64_t>(file.buffered.get() < 0 ? -errno : 0);
      });
      file.open_error = static_cast<int>(-std::min<int64_t>(result, 0));
      if (file.open_error != 0 || !settings.direct) continue;
      file.direct = File(open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
      if (file.direct.get() >= 0) file.pages.map(file.buffered.get());
    }
  }

  void work() {
    Memory memory;
    while (!stopped) {
      const std::size_t at = next_.fetch_add(1);
      if (at >= units_.size()) return;
      const Unit& unit = units_[at];
      const Span& span = spans_[unit.span];
      const InputFile& file = files_[span.file];
      if (file.open_error != 0) {
        note({unit.span, file.open_error, span.offset, 0, 0});
      } else if (goes_direct(file, span.offset + unit.begin, span.offset + unit.end)) {
        read_direct(unit, memory.of(round_up(largest_) + 2 * kPage));
      } else {
        read_cached(unit, memory.of(round_up(largest_) + 2 * kPage));
      }
    }
  }

  std::vector<Problem> take_problems() {
    std::sort(problems_.begin(), problems_.end(), [](const Problem& a, const Problem& b) {
      return a.span != b.span ? a.span < b.span : a.offset < b.offset;
    });
    return std::move(problems_);
  }

 private:
  void note(Problem problem) {
    std::lock_guard<std::mutex> lock(problems_mutex_);
    problems_.push_back(problem);
    if (!keep_going_) stopped = true;
  }

  // What is mostly in memory is copied from there, which costs the disk nothing.
  static bool goes_direct(const InputFile& file, uint64_t begin, uint64_t end) {
    return file.pages.mapped() && !file.pages.mostly_cached(begin, end);
  }

  // Reads until at least `needed` of `bytes` are there; says whether they are.
  bool read(const Unit& unit, int descriptor, bool direct_io, unsigned char* to, uint64_t offset,
            uint64_t bytes_there, uint64_t needed) {
    const InputFile& file = files_[spans_[unit.span].file];
    for (uint64_t got = 0; got < needed;) {
      const int64_t result =
          call("read", file.path, offset + got, bytes_there - got, [&](uint64_t n) {
            if (direct_io) n = std::max<uint64_t>(round_down(n), kPage);
            const ssize_t read = pread(descriptor, to + got, n, static_cast<off_t>(offset + got));
            return static_cast<int64_t>(read < 0 ? -errno : read);
          });
      if (result == -ECANCELED && stopped) return false;
      if (result < 0) {
        note({unit.span, static_cast<int>(-result), offset + got, 0, 0});
        return false;
      }
      if (result == 0) {
        note({unit.span, -1, offset + got, 0, 0});
        return false;
      }
      bytes += static_cast<uint64_t>(result);
      if (direct_io) direct += static_cast<uint64_t>(result);
      got += static_cast<uint64_t>(result);
      if (got < needed) {
        continued++;
        if (direct_io && got % kPage != 0) {  // goes on from a page, unless the file ends here
          const uint64_t page = round_down(got);
          struct stat status;
          if (fstat(descriptor, &status) == 0 &&
              offset + got >= static_cast<uint64_t>(status.st_size)) {
            note({unit.span, -1, offset + got, 0, 0});
            return false;
          }
          got = page;
        }
      }
    }
    return true;
  }

  void read_direct(const Unit& unit, unsigned char* memory) {
    const Span& span = spans_[unit.span];
    const uint64_t begin = span.offset + unit.begin, end = span.offset + unit.end;
    const uint64_t low = round_down(begin), high = round_up(end);
    if (!read(unit, files_[span.file].direct.get(), true, memory, low, high - low, end - low)) {
      return;
    }
    for (uint64_t at = unit.begin; at < unit.end; at += span.chunk) {
      const uint64_t stop = std::min(at + span.chunk, unit.end);
      const unsigned char* data = memory + (begin - low) + (at - unit.begin);
      finish(unit, at, stop, data);
    }
  }

  // A chunk at a time, by way of memory that stays in the processor's cache: from there it takes
  // one pass to compute the checksum and to store the chunk where it is wanted.
  void read_cached(const Unit& unit, unsigned char* memory) {
    const Span& span = spans_[unit.span];
    const int descriptor = files_[span.file].buffered.get();
#ifdef POSIX_FADV_WILLNEED
    if (!files_[span.file].pages.mapped()) {
      posix_fadvise(descriptor, static_cast<off_t>(span.offset + unit.begin),
                    static_cast<off_t>(unit.end - unit.begin), POSIX_FADV_WILLNEED);
    }
#endif
    for (uint64_t at = unit.begin; at < unit.end && !stopped; at += span.chunk) {
      const uint64_t stop = std::min(at + span.chunk, unit.end);
      if (!read(unit, descriptor, false, memory, span.offset + at, stop - at, stop - at)) return;
      finish(unit, at, stop, memory);
    }
  }

  // Checks a chunk and stores what is wanted of it.
  void finish(const Unit& unit, uint64_t begin, uint64_t end, const unsigned char* data) {
    const Span& span = spans_[unit.span];
    const uint64_t low = std::max(begin, span.wanted.begin);
    const uint64_t high = std::min(end, span.wanted.begin + span.wanted.bytes);
    const bool whole = low == begin && high == end;
    unsigned char* to =
        span.out != nullptr && low < high ? span.out + (low - span.wanted.begin) : nullptr;
    const uint32_t expected = span.crcs[begin / span.chunk];
    const uint32_t found =
        to != nullptr && whole ? copy_crc32c(to, data, end - begin) : crc32c(data, end - begin);
    if (found != expected) {
      note({unit.span, 0, span.offset + begin, expected, found});
    } else if (to != nullptr && !whole) {
      std::memcpy(to, data + (low - begin), high - low);
    }
  }

  const std::vector<Span> spans_;
  const bool keep_going_;
  std::vector<InputFile> files_;
  std::vector<Unit> units_;
  uint64_t largest_ = 0;  // bytes of a unit
  std::atomic<std::size_t> next_{0};
  std::mutex problems_mutex_;
  std::vector<Problem> problems_;
};

}  // namespace

std::vector<Problem> read_spans(std::vector<std::string> paths, std::vector<Span> spans,
                                bool keep_going, const Settings& settings, Statistics* statistics) {
  for (const Span& span : spans) {
    const bool whole =
        span.chunk != 0 && span.crcs.size() == (span.bytes + span.chunk - 1) / span.chunk &&
        span.file < paths.size() && span.wanted.begin + span.wanted.bytes <= span.bytes;
    if (!whole) throw std::invalid_argument("a span whose numbers do not fit each other");
  }
  const auto job =
      std::make_shared<ReadJob>(std::move(paths), std::move(spans), keep_going, settings);
  Crew::run(job, 1, [at = job.get()] { at->open_all(); });
  Crew::run(job, settings.threads, [at = job.get()] { at->work(); });
  job->report(statistics);
  return job->take_problems();
}

}  // namespace vidgen::io
