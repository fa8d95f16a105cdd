#include <cstdlib>

#include "check.h"

int main() {
  using namespace vidgen::test;
  setenv("VIDGEN_CUDA_DRIVER", FAKE_CUDA_DRIVER, 1);
  test_model();
  test_queue();
  test_cuda_lane();
  test_threads();
  test_processes();
  if (failures == 0) std::printf("all passed\n");
  return failures == 0 ? 0 : 1;
}
