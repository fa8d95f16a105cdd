#include <algorithm>
#include <cstring>

#include "host/parallel.h"
#include "vidgen/io.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vidgen::io {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;  // bytes a thread takes at a time

// Non-temporal stores save one of three memory transfers: the destination is not read first, and it
// is not needed soon.
void copy_past_cache(unsigned char* to, const unsigned char* from, uint64_t bytes) {
#if defined(__SSE2__)
  const uint64_t head = std::min<uint64_t>(-reinterpret_cast<uintptr_t>(to) % 16, bytes);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  for (; bytes >= 64; bytes -= 64, to += 64, from += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(from + 1024), _MM_HINT_NTA);
    for (int i = 0; i < 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
  _mm_sfence();
#endif
  std::memcpy(to, from, bytes);
}

struct Work {
  const std::vector<Copy>* copies;
  std::vector<uint64_t> first;  // the first piece of each copy
};

void copy_piece(void* context, int64_t piece) {
  const auto* work = static_cast<const Work*>(context);
  const auto number = static_cast<uint64_t>(piece);
  const auto after = std::upper_bound(work->first.begin(), work->first.end(), number);
  const auto which = static_cast<std::size_t>(after - work->first.begin()) - 1;
  const Copy& copy = (*work->copies)[which];
  const uint64_t begin = (number - work->first[which]) * kPiece;
  copy_past_cache(copy.to + begin, copy.from + begin, std::min(kPiece, copy.bytes - begin));
}

}  // namespace

void copy_all(const std::vector<Copy>& copies, int threads) {
  std::vector<Copy> full;
  Work work{&full, {}};
  uint64_t pieces = 0;
  for (const Copy& copy : copies) {
    if (copy.bytes == 0) continue;
    full.push_back(copy);
    work.first.push_back(pieces);
    pieces += (copy.bytes + kPiece - 1) / kPiece;
  }
  parallel_chunks(static_cast<int64_t>(pieces), threads, copy_piece, &work);
}

}  // namespace vidgen::io
