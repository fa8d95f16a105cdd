// Arena, lease and lane as Python classes, in the submodule memory. Addresses are plain numbers;
// vidgen/runtime/memory turns tensors into them and sees to the edges.
#include <pybind11/stl.h>

#include <optional>
#include <system_error>

#include "bind/bind.h"
#include "host/cuda_driver.h"
#include "vidgen/arena.h"
#include "vidgen/lane.h"

namespace py = pybind11;

namespace vidgen::bind {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

void check_signals() {
  py::gil_scoped_acquire held;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// A Python object with a method done().
class PythonEvent : public Event {
 public:
  explicit PythonEvent(py::object event) : event_(std::move(event)) {}
  ~PythonEvent() override {
    py::gil_scoped_acquire held;
    event_.release().dec_ref();
  }
  bool done() override {
    py::gil_scoped_acquire held;
    return event_.attr("done")().cast<bool>();
  }

 private:
  py::object event_;
};

std::shared_ptr<Event> to_event(const py::object& object) {
  if (object.is_none()) return nullptr;
  if (py::isinstance<Ticket>(object)) return object.cast<std::shared_ptr<Ticket>>();
  return std::make_shared<PythonEvent>(object);
}

Keep to_keep(const py::object& object) {
  if (object.is_none()) return nullptr;
  return Keep(new py::object(object), [](void* kept) {
    py::gil_scoped_acquire held;
    delete static_cast<py::object*>(kept);
  });
}

// A lane waits, when it goes, for copies that let go of Python objects on threads of their own.
template <class T>
struct WithoutInterpreter {
  void operator()(T* lane) const {
    py::gil_scoped_release released;
    delete lane;
  }
};
template <class T>
using Held = std::unique_ptr<T, WithoutInterpreter<T>>;

template <class T>
Held<T> held(std::unique_ptr<T> lane) {
  return Held<T>(lane.release());
}

Producer to_producer(std::optional<std::uintptr_t> stream, std::shared_ptr<Ticket> ticket) {
  if (stream) return Producer::stream(reinterpret_cast<void*>(*stream));
  return ticket != nullptr ? Producer::ticket(std::move(ticket)) : Producer::host();
}

void* address(std::uintptr_t value) { return reinterpret_cast<void*>(value); }

std::uintptr_t number(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

// What the Python classes of the same meaning are told; they are defined in Python, since the
// package can be imported without this module.
void set_error(const char* name, const char* message) {
  const auto errors = py::module_::import("vidgen.runtime.memory.errors");
  PyErr_SetString(errors.attr(name).ptr(), message);
}

void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const LeaseError& error) {
    set_error("LeaseError", error.what());
  } catch (const ArenaTimeout& error) {
    set_error("ArenaTimeout", error.what());
  } catch (const std::system_error& error) {
    const py::tuple arguments = py::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

void define_arena(py::module_& module) {
  py::class_<View, std::shared_ptr<View>>(module, "View", py::buffer_protocol())
      .def_buffer([](View& view) {
        return py::buffer_info(view.data(), 1, py::format_descriptor<unsigned char>::format(), 1,
                               {view.bytes()}, {std::size_t{1}});
      });

  py::class_<Lease>(module, "Lease")
      .def_property_readonly("nbytes", &Lease::bytes)
      .def_property_readonly("offset", &Lease::offset)
      .def("pointer", [](const Lease& lease) { return number(lease.data()); })
      .def("view", &Lease::view, Released())
      .def("drop_pages", &Lease::drop_pages, Released())
      .def("used_by",
           [](Lease& lease, const py::object& event) {
             auto native = to_event(event);
             py::gil_scoped_release released;
             lease.used_by(std::move(native));
           })
      .def("give_back", [](Lease& lease, const py::object& after) {
        auto native = to_event(after);
        py::gil_scoped_release released;
        lease.give_back(std::move(native));
      });

  py::class_<ArenaStats>(module, "ArenaStats")
      .def_readonly("nbytes", &ArenaStats::bytes)
      .def_readonly("held", &ArenaStats::held)
      .def_readonly("high_water", &ArenaStats::high_water)
      .def_readonly("leases", &ArenaStats::leases)
      .def_readonly("waits", &ArenaStats::waits)
      .def_readonly("waited_s", &ArenaStats::waited_s)
      .def_readonly("largest_free", &ArenaStats::largest_free)
      .def_readonly("lendable", &ArenaStats::lendable)
      .def_readonly("registrations", &ArenaStats::registrations)
      .def_readonly("huge_pages", &ArenaStats::huge_pages);

  py::class_<Arena, std::shared_ptr<Arena>>(module, "Arena")
      .def(py::init([](std::size_t bytes, std::string name, bool pinned, bool shared, int device,
                       int numa_node) {
             py::gil_scoped_release released;
             return Arena::make({bytes, std::move(name), pinned, shared, device, numa_node});
           }),
           py::arg("nbytes"), py::kw_only(), py::arg("name"), py::arg("pinned"), py::arg("shared"),
           py::arg("device"), py::arg("numa_node"))
      .def_property_readonly("nbytes", &Arena::bytes)
      .def_property_readonly("file", &Arena::file)
      .def_property_readonly("mapped_bytes", &Arena::mapped_bytes)
      .def(
          "take",
          [](Arena& arena, std::size_t bytes, std::size_t align, double timeout_s, std::string what,
             std::string place) {
            return arena.take(bytes, align, timeout_s, std::move(what), std::move(place),
                              check_signals);
          },
          Released())
      .def("tell", &Arena::tell, Released())
      .def("stats", &Arena::stats, Released())
      .def("holders", &Arena::holders, Released())
      .def("close", &Arena::close, Released());
}

void define_lanes(py::module_& module) {
  py::class_<Ticket, std::shared_ptr<Ticket>>(module, "Ticket")
      .def("done", &Ticket::done, Released())
      .def(
          "wait", [](Ticket& ticket) { ticket.wait(check_signals); }, Released())
      .def(
          "wait_on_stream",
          [](Ticket& ticket, std::uintptr_t stream) { ticket.wait_on_stream(address(stream)); },
          Released());

  py::class_<SimulatedEngine, std::shared_ptr<SimulatedEngine>>(module, "SimulatedEngine")
      .def(py::init(&SimulatedEngine::make), py::arg("seed"), py::arg("latency_s"),
           py::arg("bytes_per_s"));

  py::class_<Lane, Held<Lane>>(module, "Lane")
      .def("copy",
           [](Lane& lane, std::uintptr_t destination, std::uintptr_t source, std::size_t bytes,
              std::optional<std::uintptr_t> stream, std::shared_ptr<Ticket> ticket, Lease* lease,
              const py::object& keep) {
             Keep kept = to_keep(keep);
             py::gil_scoped_release released;
             return lane.copy(address(destination), address(source), bytes,
                              to_producer(stream, std::move(ticket)), lease, std::move(kept));
           })
      .def("reap", &Lane::reap, Released());
  py::class_<CudaLane, Lane, Held<CudaLane>>(module, "CudaLane")
      .def_property_readonly("stream", [](const CudaLane& lane) { return number(lane.stream()); });
  module.def(
      "simulated_lane",
      [](std::shared_ptr<SimulatedEngine> engine, int threads) {
        return held(make_simulated_lane(std::move(engine), threads));
      },
      py::arg("engine"), py::arg("threads"));
  module.def("cuda_lane", [](int device) { return held(make_cuda_lane(device)); }, Released());
}

}  // namespace

void memory(py::module_& parent) {
  auto module = parent.def_submodule("memory", "Arena, lease and lane.");
  py::register_local_exception_translator(translate);
  define_arena(module);
  define_lanes(module);
  module.def(
      "registrations", [] { return cuda_driver().registrations(); },
      "Page-lockings of this process so far.");
  module.def("numa_node_of_device", &numa_node_of_device, Released());
}

}  // namespace vidgen::bind
