#include "host/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace vidgen {
namespace {

CpuFeatures detect() {
  CpuFeatures found;
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wider registers.
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
  found.sse42 = __builtin_cpu_supports("sse4.2");
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  found.avx512 = found.avx2 && __builtin_cpu_supports("avx512f") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl");
  found.vpclmul = __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul");
  found.avx512_bf16 = found.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return found;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

}  // namespace vidgen
