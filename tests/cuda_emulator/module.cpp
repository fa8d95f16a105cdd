// The GPU's kernels on the emulator, bound as they are in vidgen._native.
#include "bind/bind.h"

PYBIND11_MODULE(_emulated, module) { vidgen::bind::cuda_ops(module); }
