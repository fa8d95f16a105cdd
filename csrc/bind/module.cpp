#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "bind/bind.h"
#include "host/cpu_features.h"
#include "host/cpu_variants.h"
#include "host/crc32c.h"

namespace py = pybind11;

namespace vidgen {
namespace {

uint32_t crc32c_of(const py::buffer& buffer, uint32_t seed) {
  Py_buffer bytes;
  if (PyObject_GetBuffer(buffer.ptr(), &bytes, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  uint32_t crc = 0;
  {
    py::gil_scoped_release released;
    crc = crc32c(bytes.buf, static_cast<std::size_t>(bytes.len), seed);
  }
  PyBuffer_Release(&bytes);
  return crc;
}

std::vector<std::string> variant_names() {
  const cpu::Variant* list = nullptr;
  const int count = cpu::variants(&list);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(list[i].name);
  return names;
}

}  // namespace
}  // namespace vidgen

PYBIND11_MODULE(_native, module) {
  module.doc() = "The compiled runtime of vidgen.";
  module.def("crc32c", &vidgen::crc32c_of, py::arg("buffer"), py::arg("seed") = 0,
             "CRC-32C of a contiguous buffer, continuing from the checksum `seed`.");
  module.def(
      "cpu_features",
      [] {
        const vidgen::CpuFeatures& found = vidgen::cpu_features();
        return std::map<std::string, bool>{{"sse4.2", found.sse42},
                                           {"avx2", found.avx2},
                                           {"avx512", found.avx512},
                                           {"avx512_bf16", found.avx512_bf16}};
      },
      "The instruction sets the kernels ask for, and whether this CPU has them.");
  module.def("compiled_cpu_variants", &vidgen::cpu::compiled_variants,
             "The kernel variants this module holds, whether this CPU runs them or not.");
  module.def("cpu_variants", &vidgen::variant_names,
             "The compiled kernel variants this CPU can run, best first.");
  module.def(
      "cpu_variant", [] { return vidgen::cpu::selected_variant().name; },
      "The kernel variant that runs: the best one until select_cpu_variant names another.");
  module.def("select_cpu_variant", &vidgen::cpu::select_variant, py::arg("name"));
#ifdef VIDGEN_WITH_CUDA
  module.attr("cuda_architectures") = VIDGEN_CUDA_ARCHITECTURES;
#else
  module.attr("cuda_architectures") = "";
#endif
  vidgen::bind::io(module);
  vidgen::bind::ops(module);
  vidgen::bind::memory(module);
#ifdef VIDGEN_WITH_CUDA
  vidgen::bind::cuda_ops(module);
#endif
}
