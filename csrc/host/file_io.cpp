#include "host/file_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

namespace vidgen {
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // Linux takes 2 GiB - 4 KiB at most

[[noreturn]] void fail(const char* what, FileRange range, std::size_t done, std::size_t bytes,
                       int error) {
  throw std::system_error(error, std::generic_category(),
                          std::string(what) + " of " + std::to_string(bytes) + " bytes at " +
                              std::to_string(range.offset) + " stopped after " +
                              std::to_string(done));
}

}  // namespace

void write_all(FileRange to, const void* source, std::size_t bytes) {
  const auto* data = static_cast<const unsigned char*>(source);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = pwrite(to.file, data + done, std::min(bytes - done, kMostAtOnce),
                                 static_cast<off_t>(to.offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("a write", to, done, bytes, count < 0 ? errno : EIO);
    done += static_cast<std::size_t>(count);
  }
}

void read_all(void* destination, FileRange from, std::size_t bytes) {
  auto* data = static_cast<unsigned char*>(destination);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = pread(from.file, data + done, std::min(bytes - done, kMostAtOnce),
                                static_cast<off_t>(from.offset) + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("a read", from, done, bytes, count < 0 ? errno : ENODATA);
    done += static_cast<std::size_t>(count);
  }
}

OwnFile::OwnFile(int file) : file_(fcntl(file, F_DUPFD_CLOEXEC, 0)) {
  if (file_ < 0) throw std::system_error(errno, std::generic_category(), "no open file");
}

OwnFile::~OwnFile() { close(file_); }

}  // namespace vidgen
