// The kernels as Python functions, in submodules cpu and cuda.
//
// Both take the fields of the kernel's argument struct in order. cpu's functions then take a number
// of threads; cuda's a stream and the address of a workspace, whose size in floats the function of
// the same name with _workspace appended gives.
#include "vidgen/ops.h"

#include <cstdint>
#include <utility>

#include "bind/bind.h"
#include "bind/tensor_view_caster.h"
#include "vidgen/attention.h"

namespace py = pybind11;

namespace vidgen::bind {
namespace {

// An argument struct is a row of TensorViews, and a float after them where a kernel has one.
template <class Args>
constexpr std::size_t kViews = sizeof(Args) / sizeof(TensorView);
template <class Args>
constexpr bool kHasEps = sizeof(Args) % sizeof(TensorView) != 0;

template <std::size_t>
using View = const TensorView&;

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

#ifdef VIDGEN_WITH_CUDA

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

#endif

}  // namespace

void ops(py::module_& module) {
  py::module_ cpu_kernels = module.def_submodule("cpu", "The kernels on this CPU.");
#define VIDGEN_BIND(name, Args) \
  define_cpu<Args>(cpu_kernels, #name, cpu::name, std::make_index_sequence<kViews<Args>>{});
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_BIND)
  VIDGEN_FOR_EACH_ATTENTION_KERNEL(VIDGEN_BIND)
#undef VIDGEN_BIND
#ifdef VIDGEN_WITH_CUDA
  py::module_ cuda_kernels = module.def_submodule("cuda", "The kernels on the current GPU.");
#define VIDGEN_BIND(name, Args)                                              \
  define_cuda<Args>(cuda_kernels, #name, cuda::name, cuda::name##_workspace, \
                    std::make_index_sequence<kViews<Args>>{});
  VIDGEN_FOR_EACH_KERNEL(VIDGEN_BIND)
  VIDGEN_FOR_EACH_ATTENTION_KERNEL(VIDGEN_BIND)
#undef VIDGEN_BIND
#endif
}

}  // namespace vidgen::bind
