// The kernels are compiled once for every instruction set; the best this CPU has is chosen once.
#pragma once

#include "vidgen/attention.h"
#include "vidgen/ops.h"

namespace vidgen::cpu {

struct Variant {
  const char* name;
#define VIDGEN_MEMBER(name, Args) void (*name)(const Args&, int threads);
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_MEMBER)
  VIDGEN_FOR_EACH_ATTENTION_KERNEL(VIDGEN_MEMBER)
#undef VIDGEN_MEMBER
};

// Every variant this CPU can run, best first; the last one runs everywhere.
int variants(const Variant** first);

}  // namespace vidgen::cpu
