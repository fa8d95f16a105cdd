// The file engine on its own, so that the sanitizers can watch its threads.
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <deque>
#include <thread>

#include "check.h"
#include "host/crc32c.h"
#include "host/io_crew.h"
#include "vidgen/io.h"

namespace vidgen::test {
namespace {

using io::kPage;

struct Folder {
  Folder() {
    char name[] = "/tmp/vidgen-test-io-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { rmdir(path.c_str()); }
  std::string path;
};

struct Data {
  explicit Data(std::size_t bytes) : bytes(bytes), padded(io::round_up(bytes)) {
    at = static_cast<unsigned char*>(std::aligned_alloc(kPage, padded));
    for (std::size_t i = 0; i < padded; ++i) at[i] = static_cast<unsigned char>(i * 31 + i / 257);
  }
  ~Data() { std::free(at); }
  std::size_t bytes, padded;
  unsigned char* at;
};

constexpr uint64_t kChunk = 5000;  // no multiple of a page

std::vector<io::Range> chunks_of(uint64_t bytes) {
  std::vector<io::Range> list;
  for (uint64_t at = 0; at < bytes; at += kChunk)
    list.push_back({at, std::min(kChunk, bytes - at)});
  return list;
}

void test_round_trip(io::Settings settings, const std::string& what) {
  const Folder folder;
  const Data data(1'234'567);
  settings.block = 4 * kPage;
  settings.threads = 3;
  const std::vector<std::string> paths = {folder.path + "/a", folder.path + "/b"};
  std::vector<io::OutputFile> files;
  for (const std::string& path : paths) {
    files.push_back({path, data.at, data.bytes, chunks_of(data.bytes)});
  }
  io::Statistics statistics;
  const auto crcs = io::write_files(files, settings, &statistics);
  expect(crcs[1].at(7) == crc32c(data.at + 7 * kChunk, kChunk), what + ": a checksum");
  expect(crcs[0] == crcs[1], what + ": both files alike");

  std::vector<unsigned char> out(data.bytes + 9);
  std::vector<io::Span> spans;
  for (std::size_t file = 0; file < 2; ++file) {
    const uint64_t begin = file * 17 + 3;  // from within the first chunk to within the last
    spans.push_back({file,
                     0,
                     data.bytes,
                     kChunk,
                     crcs[file],
                     {begin, data.bytes - begin - 5},
                     file == 0 ? out.data() + 1 : nullptr});
  }
  auto problems = io::read_spans(paths, spans, false, settings, &statistics);
  expect(problems.empty(), what + ": reads what was written");
  expect(std::memcmp(out.data() + 1, data.at + 3, data.bytes - 8) == 0, what + ": every byte");

  spans[1].crcs[3] ^= 1;
  problems = io::read_spans(paths, spans, true, settings, &statistics);
  expect(problems.size() == 1 && problems[0].span == 1 && problems[0].offset == 3 * kChunk,
         what + ": names the damage");
  for (const std::string& path : paths) unlink(path.c_str());
}

void test_faults(io::Settings settings, const std::string& what) {
  const Folder folder;
  const Data data(300'000);
  const std::string path = folder.path + "/file";
  settings.block = 2 * kPage;
  settings.threads = 4;
  std::atomic<int> calls{0};
  settings.hook = [&](const char* call, const std::string&, uint64_t, uint64_t bytes) -> int64_t {
    const int number = calls++;
    if (std::strcmp(call, "write") != 0) return static_cast<int64_t>(bytes);
    if (number % 5 == 1) return -EINTR;
    if (number % 5 == 2) return -EAGAIN;
    if (number % 5 == 3) return static_cast<int64_t>(bytes / 2);
    return static_cast<int64_t>(bytes);
  };
  io::Statistics statistics;
  const auto crcs =
      io::write_files({{path, data.at, data.bytes, chunks_of(data.bytes)}}, settings, &statistics);
  expect(statistics.continued > 0 && statistics.retried > 0, what + ": faults were met");
  settings.hook = nullptr;
  const auto problems = io::read_spans(
      {path}, {{0, 0, data.bytes, kChunk, crcs[0], {0, 0}, nullptr}}, true, settings, &statistics);
  expect(problems.empty(), what + ": and overcome");
  unlink(path.c_str());

  calls = 0;
  settings.hook = [&](const char* call, const std::string&, uint64_t, uint64_t bytes) -> int64_t {
    return std::strcmp(call, "write") == 0 && calls++ == 9 ? -EIO : static_cast<int64_t>(bytes);
  };
  int code = 0;
  try {
    io::write_files({{path, data.at, data.bytes, {}}}, settings, &statistics);
  } catch (const io::Error& error) {
    code = error.code;
    expect(error.path == path, what + ": names the file");
  }
  expect(code == EIO, what + ": a failed write is told");
  unlink(path.c_str());
}

// The writing thread is left behind when its caller gives up; the job stays alive for it.
void test_stuck(io::Settings settings, const std::string& what) {
  static std::deque<Data> kept;  // threads left behind may still read it
  const Folder folder;
  const Data& data = kept.emplace_back(100'000);
  const std::string path = folder.path + "/file";
  std::atomic<bool> open{false}, back{false};
  settings.block = 2 * kPage;
  settings.timeout_s = 1;  // a busy machine takes long over other writes too
  settings.hook = [&](const char* call, const std::string&, uint64_t offset, uint64_t bytes) {
    if (std::strcmp(call, "write") == 0 && offset == 0) {
      while (!open) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      back = true;
    }
    return static_cast<int64_t>(bytes);
  };
  std::string said;
  io::Statistics statistics;
  try {
    io::write_files({{path, data.at, data.bytes, {}}}, settings, &statistics);
  } catch (const io::Error& error) {
    said = error.what();
    expect(error.code == ETIMEDOUT && error.path == path, what + ": a timeout, and its file");
  }
  expect(said.find("write of 8192 bytes at offset 0 is stuck") == 0, what + ": " + said);
  open = true;
  while (!back) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  unlink(path.c_str());
}

void test_copy() {
  Data from(3'000'003);
  std::vector<unsigned char> to(from.bytes + 64);
  for (uint64_t shift : {0, 1, 15, 16, 63}) {
    std::memset(to.data(), 0, to.size());
    io::copy_all({{to.data() + shift, from.at, 70},
                  {to.data(), from.at, 0},
                  {to.data() + shift + 70, from.at + 70, from.bytes - 70}},
                 3);
    expect(std::memcmp(to.data() + shift, from.at, from.bytes) == 0,
           "a copy to " + std::to_string(shift));
  }
}

}  // namespace

void test_io() {
  const bool direct = io::why_not_direct("/tmp").empty();
  for (const bool uring : {false, true}) {
    if (uring && !io::why_not_uring().empty()) continue;
    for (const bool around : {false, true}) {
      if (around && !direct) continue;
      io::Settings settings;
      settings.uring = uring;
      settings.direct = around;
      const std::string what = std::string(uring ? "ring" : "threads") + (around ? " direct" : "");
      test_round_trip(settings, what);
      test_faults(settings, what);
      test_stuck(settings, what);
    }
  }
  test_copy();
}

}  // namespace vidgen::test
