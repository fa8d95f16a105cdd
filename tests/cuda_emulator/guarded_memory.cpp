// Memory between pages nobody may touch; and the emulator as Python sees it.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>

#include "emulator.h"

namespace vidgen::emulator {
namespace {

std::size_t page() {
  static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

struct Map {
  void* base;
  std::size_t bytes;
};

std::map<void*, Map>& maps() {
  static std::map<void*, Map> table;
  return table;
}

}  // namespace

void* allocate(std::size_t bytes, bool against_the_end) {
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  const std::size_t pages = (std::max<std::size_t>(rounded, 16) + page() - 1) / page() * page();
  const std::size_t total = pages + 2 * page();
  void* map = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(map) + page();
  mprotect(map, page(), PROT_NONE);
  mprotect(first + pages, page(), PROT_NONE);
  void* memory = against_the_end ? first + pages - rounded : first;
  maps()[memory] = {map, total};
  return memory;
}

void release(void* memory) {
  const auto found = maps().find(memory);
  if (found == maps().end()) throw std::logic_error("memory the emulator did not give out");
  munmap(found->second.base, found->second.bytes);
  maps().erase(found);
}

}  // namespace vidgen::emulator

// ---- from Python, by ctypes ----

#define VIDGEN_EXPORT extern "C" __attribute__((visibility("default")))

VIDGEN_EXPORT void vidgen_emulator_seed(uint64_t seed) { vidgen::emulator::settings().seed = seed; }
VIDGEN_EXPORT void* vidgen_emulator_allocate(std::size_t bytes, int against_the_end) {
  return vidgen::emulator::allocate(bytes, against_the_end != 0);
}
VIDGEN_EXPORT void vidgen_emulator_release(void* memory) { vidgen::emulator::release(memory); }

// Launches, barriers, matrix products, copies and bank conflicts since the last call.
VIDGEN_EXPORT void vidgen_emulator_counts(int64_t (*values)[5]) {
  vidgen::emulator::Counts& counts = vidgen::emulator::counts();
  const int64_t all[5] = {counts.launches, counts.barriers, counts.matrix_products, counts.copies,
                          counts.bank_conflicts};
  std::memcpy(*values, all, sizeof all);
  counts = {};
}
