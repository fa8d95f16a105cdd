// The kernels are compiled once for each instruction set; one variant is chosen at run time.
#pragma once

#include <string>
#include <vector>

#include "vidgen/ops.h"

namespace vidgen::cpu {

struct Variant {
  const char* name;
#define VIDGEN_MEMBER(name, Args) void (*name)(const Args&, int threads);
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_MEMBER)
#undef VIDGEN_MEMBER
};

// The names of every variant this library is compiled with, best first, whatever this CPU is.
std::vector<std::string> compiled_variants();

// Every compiled variant this CPU can run, best first.
int variants(const Variant** first);

// The variant that runs: the best one until `select_variant` names another.
const Variant& selected_variant();

// Throws std::invalid_argument when no compiled variant of that name runs on this CPU.
void select_variant(const std::string& name);

}  // namespace vidgen::cpu
