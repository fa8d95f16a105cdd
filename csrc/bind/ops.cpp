// The CPU's kernels as Python functions, in submodule cpu: they take the fields of the kernel's
// argument struct in order, then a number of threads.
#include "vidgen/ops.h"

#include <utility>

#include "bind/arguments.h"
#include "bind/bind.h"
#include "bind/tensor_view_caster.h"

namespace py = pybind11;

namespace vidgen::bind {
namespace {

template <class Args, std::size_t... index>
void define_cpu(py::module_& module, const char* name, void (*kernel)(const Args&, int),
                std::index_sequence<index...>) {
  if constexpr (kHasEps<Args>) {
    module.def(name, [kernel](View<index>... views, float eps, int threads) {
      py::gil_scoped_release released;
      kernel(Args{views..., eps}, threads);
    });
  } else {
    module.def(name, [kernel](View<index>... views, int threads) {
      py::gil_scoped_release released;
      kernel(Args{views...}, threads);
    });
  }
}

}  // namespace

void ops(py::module_& module) {
  py::module_ cpu_kernels = module.def_submodule("cpu", "The kernels on this CPU.");
#define VIDGEN_BIND(name, Args) \
  define_cpu<Args>(cpu_kernels, #name, cpu::name, std::make_index_sequence<kViews<Args>>{});
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_BIND)
#undef VIDGEN_BIND
}

}  // namespace vidgen::bind
