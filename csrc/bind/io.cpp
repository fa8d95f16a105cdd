#include "vidgen/io.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>

#include "bind/bind.h"

namespace py = pybind11;

namespace vidgen::bind {
namespace {

using io::Settings;
using io::Statistics;

// A Python function called by the engine's threads, which may outlive the caller if one is stuck;
// reference counts change only while holding the GIL.
std::shared_ptr<py::object> shared(const py::object& function) {
  return {new py::object(function), [](py::object* held) {
            py::gil_scoped_acquire acquired;
            delete held;
          }};
}

Settings settings_of(bool direct, bool uring, int threads, unsigned depth, std::size_t block,
                     double timeout_s, const py::object& hook, const py::object& progress) {
  if (threads < 1 || depth < 1 || block == 0 || block % io::kPage != 0) {
    throw std::invalid_argument("threads and depth are at least 1, block a multiple of a page");
  }
  Settings settings{direct, uring, threads, depth, block, timeout_s, nullptr, nullptr};
  if (!hook.is_none()) {
    settings.hook = [held = shared(hook)](const char* call, const std::string& path,
                                          uint64_t offset, uint64_t bytes) {
      py::gil_scoped_acquire acquired;
      try {
        return (*held)(call, path, offset, bytes).cast<int64_t>();
      } catch (const py::error_already_set& error) {
        throw std::runtime_error(error.what());
      }
    };
  }
  // Also without a progress function, so that a waiting caller handles Ctrl-C.
  settings.progress = [held = shared(progress)](uint64_t bytes) {
    py::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!held->is_none()) (*held)(bytes);
  };
  return settings;
}

py::dict dict_of(const Statistics& statistics) {
  py::dict result;
  result["bytes"] = statistics.bytes;
  result["direct"] = statistics.direct;
  result["continued"] = statistics.continued;
  result["retried"] = statistics.retried;
  return result;
}

using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
using File = std::tuple<std::string, uintptr_t, uint64_t, Ranges>;  // path, address, bytes, checked
// file, offset, bytes, crcs, where the wanted bytes begin, how many, address
using Span = std::tuple<std::size_t, uint64_t, uint64_t, std::vector<uint32_t>, uint64_t, uint64_t,
                        uintptr_t>;

py::tuple write_files(const std::vector<File>& files, bool direct, bool uring, int threads,
                      unsigned depth, std::size_t block, double timeout_s, const py::object& hook) {
  const Settings settings =
      settings_of(direct, uring, threads, depth, block, timeout_s, hook, py::none());
  std::vector<std::vector<uint32_t>> crcs;
  Statistics statistics;
  {
    py::gil_scoped_release released;
    std::vector<io::OutputFile> outputs;
    for (const auto& [path, address, bytes, checked] : files) {
      io::OutputFile output{path, reinterpret_cast<const unsigned char*>(address), bytes, {}};
      for (const auto& [begin, length] : checked) output.checked.push_back({begin, length});
      outputs.push_back(std::move(output));
    }
    crcs = io::write_files(std::move(outputs), settings, &statistics);
  }
  return py::make_tuple(crcs, dict_of(statistics));
}

py::tuple read_spans(const std::vector<std::string>& paths, const std::vector<Span>& spans,
                     uint64_t chunk, bool keep_going, bool direct, int threads, std::size_t block,
                     double timeout_s, const py::object& hook, const py::object& progress) {
  const Settings settings =
      settings_of(direct, false, threads, 1, block, timeout_s, hook, progress);
  std::vector<io::Problem> problems;
  Statistics statistics;
  {
    py::gil_scoped_release released;
    std::vector<io::Span> wanted;
    for (const auto& [file, offset, bytes, crcs, begin, length, address] : spans) {
      wanted.push_back({file,
                        offset,
                        bytes,
                        chunk,
                        crcs,
                        {begin, length},
                        reinterpret_cast<unsigned char*>(address)});
    }
    problems = io::read_spans(paths, std::move(wanted), keep_going, settings, &statistics);
  }
  py::list found;
  for (const io::Problem& problem : problems) {
    found.append(py::make_tuple(problem.span, problem.code, problem.offset, problem.expected,
                                problem.found));
  }
  return py::make_tuple(found, dict_of(statistics));
}

void copy_all(const std::vector<std::tuple<uintptr_t, uintptr_t, uint64_t>>& copies, int threads) {
  py::gil_scoped_release released;
  std::vector<io::Copy> list;
  for (const auto& [to, from, bytes] : copies) {
    list.push_back({reinterpret_cast<unsigned char*>(to),
                    reinterpret_cast<const unsigned char*>(from), bytes});
  }
  io::copy_all(list, threads);
}

}  // namespace

void io(py::module_& module) {
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const io::Error& error) {
      // OSError picks its subclass from the errno.
      const py::object path = error.path.empty() ? py::none() : py::object(py::str(error.path));
      const py::tuple arguments = py::make_tuple(error.code, error.what(), path);
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    }
  });
  module.def("io_write", &write_files, py::arg("files"), py::kw_only(), py::arg("direct"),
             py::arg("uring"), py::arg("threads"), py::arg("depth"), py::arg("block"),
             py::arg("timeout_s"), py::arg("hook") = py::none(),
             "Write new files from memory, durably; the checksums of their parts, and statistics.");
  module.def("io_read", &read_spans, py::arg("paths"), py::arg("spans"), py::kw_only(),
             py::arg("chunk"), py::arg("keep_going"), py::arg("direct"), py::arg("threads"),
             py::arg("block"), py::arg("timeout_s"), py::arg("hook") = py::none(),
             py::arg("progress") = py::none(),
             "Read parts of files into memory, checked; the problems found, and statistics.");
  module.def("io_copy", &copy_all, py::arg("copies"), py::arg("threads"),
             "Copy (to, from, bytes) between addresses on several threads.");
  module.def("io_why_not_direct", &io::why_not_direct, py::arg("directory"),
             py::call_guard<py::gil_scoped_release>(),
             "Why O_DIRECT cannot write in a directory; empty if it can.");
  module.def("io_why_not_uring", &io::why_not_uring,
             "Why io_uring cannot be used; empty if it can.");
}

}  // namespace vidgen::bind
