#include "host/cpu_variants.h"

#include <atomic>
#include <stdexcept>

#include "host/cpu_features.h"

namespace vidgen::cpu {

#define VIDGEN_DECLARE(isa)     \
  namespace isa {               \
  extern const Variant variant; \
  }
VIDGEN_DECLARE(baseline)
VIDGEN_DECLARE(avx2)
VIDGEN_DECLARE(avx512)
VIDGEN_DECLARE(avx512_bf16)
#undef VIDGEN_DECLARE

namespace {

struct Usable {
  Variant list[4];
  int count = 0;

  Usable() {
#ifdef VIDGEN_HAS_avx512_bf16
    if (cpu_features().avx512_bf16) list[count++] = avx512_bf16::variant;
#endif
#ifdef VIDGEN_HAS_avx512
    if (cpu_features().avx512) list[count++] = avx512::variant;
#endif
#ifdef VIDGEN_HAS_avx2
    if (cpu_features().avx2) list[count++] = avx2::variant;
#endif
#ifdef VIDGEN_HAS_baseline  // tests may leave it out
    list[count++] = baseline::variant;
#endif
  }
};

const Usable& usable() {
  static const Usable found;
  return found;
}

std::atomic<const Variant*>& selection() {
  static std::atomic<const Variant*> selected{usable().list};
  return selected;
}

}  // namespace

std::vector<std::string> compiled_variants() {
  return {
#ifdef VIDGEN_HAS_avx512_bf16
      "avx512_bf16",
#endif
#ifdef VIDGEN_HAS_avx512
      "avx512",
#endif
#ifdef VIDGEN_HAS_avx2
      "avx2",
#endif
#ifdef VIDGEN_HAS_baseline
      "baseline",
#endif
  };
}

int variants(const Variant** first) {
  *first = usable().list;
  return usable().count;
}

const Variant& selected_variant() { return *selection().load(std::memory_order_relaxed); }

void select_variant(const std::string& name) {
  for (int i = 0; i < usable().count; ++i) {
    if (name == usable().list[i].name) {
      selection().store(&usable().list[i], std::memory_order_relaxed);
      return;
    }
  }
  throw std::invalid_argument("no compiled variant " + name + " runs on this CPU");
}

#define VIDGEN_DEFINE(name, Args)            \
  void name(const Args& args, int threads) { \
    check(args);                             \
    selected_variant().name(args, threads);  \
  }
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DEFINE)
#undef VIDGEN_DEFINE

}  // namespace vidgen::cpu
