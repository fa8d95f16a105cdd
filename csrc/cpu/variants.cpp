#include "cpu/variants.h"

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

}  // namespace

int variants(const Variant** first) {
  *first = usable().list;
  return usable().count;
}

#define VIDGEN_DEFINE(name, Args)            \
  void name(const Args& args, int threads) { \
    check(args);                             \
    usable().list[0].name(args, threads);    \
  }
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DEFINE)
VIDGEN_FOR_EACH_ATTENTION_KERNEL(VIDGEN_DEFINE)
#undef VIDGEN_DEFINE

}  // namespace vidgen::cpu
