// Prints the variants this CPU can run, best first, as a CMake list. CMake runs it at configure
// time.
#include <cstdio>

#include "host/cpu_features.h"

int main() {
  const vidgen::CpuFeatures& found = vidgen::cpu_features();
  if (found.avx512_bf16) std::printf("avx512_bf16;");
  if (found.avx512) std::printf("avx512;");
  if (found.avx2) std::printf("avx2;");
  std::printf("baseline");
  return 0;
}
