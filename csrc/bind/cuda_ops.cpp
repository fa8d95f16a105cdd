// The GPU's kernels as Python functions, in submodule cuda: they take the fields of the kernel's
// argument struct in order, then a stream and the address of a workspace, whose size in floats the
// function of the same name with _workspace appended gives.
#include <cstdint>
#include <string>
#include <utility>

#include "bind/arguments.h"
#include "bind/bind.h"
#include "bind/tensor_view_caster.h"
#include "vidgen/ops.h"

namespace py = pybind11;

namespace vidgen::bind {
namespace {

template <class Args, std::size_t... index>
void define_cuda(py::module_& module, const char* name,
                 void (*kernel)(const Args&, const cuda::Launch&),
                 int64_t (*workspace_size)(const Args&), std::index_sequence<index...>) {
  const auto launch = [](std::uintptr_t stream, std::uintptr_t workspace) {
    return cuda::Launch{reinterpret_cast<void*>(stream), reinterpret_cast<float*>(workspace)};
  };
  const std::string workspace_name = std::string(name) + "_workspace";
  if constexpr (kHasEps<Args>) {
    module.def(name, [=](View<index>... views, float eps, std::uintptr_t stream,
                         std::uintptr_t workspace) {
      py::gil_scoped_release released;
      kernel(Args{views..., eps}, launch(stream, workspace));
    });
    module.def(workspace_name.c_str(), [=](View<index>... views, float eps) {
      return workspace_size(Args{views..., eps});
    });
  } else {
    module.def(name, [=](View<index>... views, std::uintptr_t stream, std::uintptr_t workspace) {
      py::gil_scoped_release released;
      kernel(Args{views...}, launch(stream, workspace));
    });
    module.def(workspace_name.c_str(),
               [=](View<index>... views) { return workspace_size(Args{views...}); });
  }
}

}  // namespace

void cuda_ops(py::module_& module) {
  py::module_ cuda_kernels = module.def_submodule("cuda", "The kernels on the current GPU.");
#define VIDGEN_BIND(name, Args)                                              \
  define_cuda<Args>(cuda_kernels, #name, cuda::name, cuda::name##_workspace, \
                    std::make_index_sequence<kViews<Args>>{});
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_BIND)
#undef VIDGEN_BIND
}

}  // namespace vidgen::bind
