// What this CPU can do, as far as the kernels ask.
#pragma once

namespace vidgen {

struct CpuFeatures {
  bool sse42 = false;
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ and VL
  bool avx512_bf16 = false;
  bool vpclmul = false;  // carry-less products, of wide vectors too
};

const CpuFeatures& cpu_features();

}  // namespace vidgen
