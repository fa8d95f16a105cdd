// The CUDA driver, loaded when first needed: building and loading vidgen need no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vidgen {

// Streams and events are the driver's own, which are also the runtime's and torch's.
using CudaStream = void*;
using CudaEvent = void*;

class CudaDriver {
 public:
  // `library`: what to load; the system's driver by its usual name.
  explicit CudaDriver(const char* library);

  // Why the driver cannot be used; empty if it can.
  const std::string& problem() const { return problem_; }

  void register_memory(int device, void* data, std::size_t bytes) const;
  void unregister_memory(int device, void* data) const noexcept;
  std::uint64_t registrations() const;        // since the process began
  std::string pci_address(int device) const;  // as in /sys/bus/pci/devices

  CudaStream make_stream(int device) const;
  void destroy_stream(int device, CudaStream stream) const noexcept;
  CudaEvent make_event(int device) const;
  void destroy_event(int device, CudaEvent event) const noexcept;
  void record(int device, CudaEvent event, CudaStream stream) const;
  void stream_waits(int device, CudaStream stream, CudaEvent event) const;
  bool finished(int device, CudaEvent event) const;
  void wait(int device, CudaEvent event) const;
  void copy(int device, void* destination, const void* source, std::size_t bytes,
            CudaStream stream) const;

 private:
  struct Functions;
  class Current;
  void check(int status, const char* what) const;

  std::string problem_;
  Functions* functions_ = nullptr;  // lives as long as the process, as the library does
};

// The process's driver. Throws std::runtime_error where it cannot be used.
const CudaDriver& cuda_driver();

// The NUMA node of a GPU; -1 if there is only one node or it is unknown.
int numa_node_of_device(int device);

}  // namespace vidgen
