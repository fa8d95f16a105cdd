// One function for each area of the extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace vidgen::bind {

void io(pybind11::module_& module);
void ops(pybind11::module_& module);
void memory(pybind11::module_& module);
void cuda_ops(pybind11::module_& module);

}  // namespace vidgen::bind
