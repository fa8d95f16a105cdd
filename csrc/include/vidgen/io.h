// Reads and writes files: every completion is checked, and every byte has a checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vidgen::io {

constexpr std::size_t kPage = 4096;  // what O_DIRECT aligns memory, offsets and sizes to

// Called before each system call that can touch the disk, by the thread that makes it, with `bytes`
// to transfer. Returns how many of them to go on with, or a negated errno to have instead of the
// call. The tests break disks with it; it may also take its time.
using Hook = std::function<int64_t(const char* call, const std::string& path, uint64_t offset,
                                   uint64_t bytes)>;

struct Settings {
  bool direct = false;  // O_DIRECT
  bool uring = false;   // writes by io_uring, else by pwrite; reads are always preads
  int threads = 1;
  unsigned depth = 4;      // writes of one thread under way at once, with io_uring
  std::size_t block = 1;   // bytes of a transfer: a multiple of kPage
  double timeout_s = 600;  // for one system call; beyond it the disk is called stuck
  Hook hook;               // may be empty
  std::function<void(uint64_t)> progress;  // the waiting thread tells bytes so far; may be empty
};

// A system call that failed, was stuck, or did nothing.
class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& path, const std::string& what)
      : std::runtime_error(what), code(code), path(path) {}
  int code;  // errno
  std::string path;
};

struct Statistics {
  uint64_t bytes = 0;      // moved between memory and files
  uint64_t direct = 0;     // of these, by O_DIRECT
  uint64_t continued = 0;  // transfers that came back short and were gone on with
  uint64_t retried = 0;    // EINTR and EAGAIN
};

struct Range {
  uint64_t begin;
  uint64_t bytes;
};

struct OutputFile {
  std::string path;           // made by the call: it must not exist
  const unsigned char* data;  // for O_DIRECT on a page, and readable to the end of its last page
  uint64_t bytes;
  std::vector<Range> checked;  // parts to checksum, in the order of their beginnings
};

// Writes the files and makes their contents durable; their names need the directory synced.
// Returns, for each file, the CRC32C of each checked part.
std::vector<std::vector<uint32_t>> write_files(std::vector<OutputFile> files,
                                               const Settings& settings, Statistics* statistics);

// Bytes of a file that are checked together, and the part of them that is wanted.
struct Span {
  std::size_t file;
  uint64_t offset;  // in the file
  uint64_t bytes;
  uint64_t chunk;              // bytes under one checksum; the last may be shorter
  std::vector<uint32_t> crcs;  // what they ought to be
  Range wanted;                // within the span
  unsigned char* out;          // where the wanted bytes go; null if they are only checked
};

struct Problem {
  std::size_t span;
  int code;         // 0: a checksum differs; -1: the file ends early; else an errno
  uint64_t offset;  // in the file
  uint32_t expected, found;
};

// Reads, checks and delivers. Stops at the first problem unless told to keep going.
std::vector<Problem> read_spans(std::vector<std::string> paths, std::vector<Span> spans,
                                bool keep_going, const Settings& settings, Statistics* statistics);

// Why files in the directory cannot be written with O_DIRECT; empty when they can.
std::string why_not_direct(const std::string& directory);

// Why this process cannot use io_uring; empty when it can.
std::string why_not_uring();

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  uint64_t bytes;
};

// Copies past the cache, the work evenly divided among threads.
void copy_all(const std::vector<Copy>& copies, int threads);

}  // namespace vidgen::io
