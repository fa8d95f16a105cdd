// The kernels of one instruction set, as a table. Compiled once for each.
#include "host/cpu_variants.h"

#define VIDGEN_TEXT_OF(word) #word
#define VIDGEN_TEXT(word) VIDGEN_TEXT_OF(word)

namespace vidgen::cpu::VIDGEN_ISA {

#define VIDGEN_DECLARE(name, Args) void name(const Args& args, int threads);
VIDGEN_FOR_EACH_KERNEL(VIDGEN_DECLARE)
#undef VIDGEN_DECLARE

extern const Variant variant;
const Variant variant = {VIDGEN_TEXT(VIDGEN_ISA),
#define VIDGEN_MEMBER(name, Args) name,
                         VIDGEN_FOR_EACH_KERNEL(VIDGEN_MEMBER)
#undef VIDGEN_MEMBER
};

}  // namespace vidgen::cpu::VIDGEN_ISA
