#include "host/cuda_driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <stdexcept>

namespace vidgen {
namespace {

constexpr int kSuccess = 0;
constexpr int kNotReady = 600;
constexpr unsigned kPortable = 1;           // CU_MEMHOSTREGISTER_PORTABLE
constexpr unsigned kNonBlocking = 1;        // CU_STREAM_NON_BLOCKING
constexpr unsigned kSleepNoTiming = 1 | 2;  // CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING

std::atomic<std::uint64_t> registration_count{0};

}  // namespace

// Names and types as in cuda.h; handles are pointers, a device is an int, a status is an int.
struct CudaDriver::Functions {
  int (*init)(unsigned);
  int (*device_get)(int*, int);
  int (*pci_address)(char*, int, int);
  int (*retain_context)(void**, int);
  int (*push)(void*);
  int (*pop)(void**);
  int (*host_register)(void*, std::size_t, unsigned);
  int (*host_unregister)(void*);
  int (*stream_create)(void**, unsigned);
  int (*stream_destroy)(void*);
  int (*stream_wait_event)(void*, void*, unsigned);
  int (*event_create)(void**, unsigned);
  int (*event_destroy)(void*);
  int (*event_record)(void*, void*);
  int (*event_query)(void*);
  int (*event_synchronize)(void*);
  int (*copy_async)(std::uintptr_t, std::uintptr_t, std::size_t, void*);
  int (*error_string)(int, const char**);

  std::mutex mutex;
  std::map<int, void*> contexts;  // the primary ones, which torch uses too; kept for good
};

CudaDriver::CudaDriver(const char* library) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    problem_ = std::string("no CUDA driver: ") + dlerror();
    return;
  }
  functions_ = new Functions{};
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && problem_.empty()) {
      problem_ = std::string("the CUDA driver ") + library + " has no " + name;
    }
  };
  Functions& f = *functions_;
  find(f.init, "cuInit");
  find(f.device_get, "cuDeviceGet");
  find(f.pci_address, "cuDeviceGetPCIBusId");
  find(f.retain_context, "cuDevicePrimaryCtxRetain");
  find(f.push, "cuCtxPushCurrent_v2");
  find(f.pop, "cuCtxPopCurrent_v2");
  find(f.host_register, "cuMemHostRegister_v2");
  find(f.host_unregister, "cuMemHostUnregister");
  find(f.stream_create, "cuStreamCreate");
  find(f.stream_destroy, "cuStreamDestroy_v2");
  find(f.stream_wait_event, "cuStreamWaitEvent");
  find(f.event_create, "cuEventCreate");
  find(f.event_destroy, "cuEventDestroy_v2");
  find(f.event_record, "cuEventRecord");
  find(f.event_query, "cuEventQuery");
  find(f.event_synchronize, "cuEventSynchronize");
  find(f.copy_async, "cuMemcpyAsync");
  find(f.error_string, "cuGetErrorString");
  if (!problem_.empty()) return;
  const int status = f.init(0);
  if (status != kSuccess) {
    problem_ = "the CUDA driver does not start: error " + std::to_string(status);
  }
}

// Makes a device's primary context the calling thread's for a few calls.
class CudaDriver::Current {
 public:
  Current(const CudaDriver& driver, int device) : f_(*driver.functions_) {
    void* context = nullptr;
    {
      std::lock_guard<std::mutex> lock(f_.mutex);
      void*& known = f_.contexts[device];
      if (known == nullptr) {
        int handle = 0;
        driver.check(f_.device_get(&handle, device), "cuDeviceGet");
        driver.check(f_.retain_context(&known, handle), "cuDevicePrimaryCtxRetain");
      }
      context = known;
    }
    driver.check(f_.push(context), "cuCtxPushCurrent");
  }
  ~Current() {
    void* popped = nullptr;
    f_.pop(&popped);
  }

 private:
  Functions& f_;
};

void CudaDriver::check(int status, const char* what) const {
  if (status == kSuccess) return;
  const char* text = nullptr;
  functions_->error_string(status, &text);
  throw std::runtime_error(std::string(what) + ": " + (text == nullptr ? "CUDA error" : text) +
                           " (" + std::to_string(status) + ")");
}

void CudaDriver::register_memory(int device, void* data, std::size_t bytes) const {
  const Current current(*this, device);
  check(functions_->host_register(data, bytes, kPortable), "cuMemHostRegister");
  ++registration_count;
}

void CudaDriver::unregister_memory(int device, void* data) const noexcept {
  try {
    const Current current(*this, device);
    functions_->host_unregister(data);
  } catch (const std::exception&) {
    // The context is gone, and with it the registration: the process is ending.
  }
}

std::uint64_t CudaDriver::registrations() const { return registration_count; }

std::string CudaDriver::pci_address(int device) const {
  int handle = 0;
  char address[32] = {};
  check(functions_->device_get(&handle, device), "cuDeviceGet");
  check(functions_->pci_address(address, sizeof address, handle), "cuDeviceGetPCIBusId");
  std::string lower(address);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

CudaStream CudaDriver::make_stream(int device) const {
  const Current current(*this, device);
  CudaStream stream = nullptr;
  check(functions_->stream_create(&stream, kNonBlocking), "cuStreamCreate");
  return stream;
}

void CudaDriver::destroy_stream(int device, CudaStream stream) const noexcept {
  try {
    const Current current(*this, device);
    functions_->stream_destroy(stream);
  } catch (const std::exception&) {
  }
}

CudaEvent CudaDriver::make_event(int device) const {
  const Current current(*this, device);
  CudaEvent event = nullptr;
  check(functions_->event_create(&event, kSleepNoTiming), "cuEventCreate");
  return event;
}

void CudaDriver::destroy_event(int device, CudaEvent event) const noexcept {
  try {
    const Current current(*this, device);
    functions_->event_destroy(event);
  } catch (const std::exception&) {
  }
}

void CudaDriver::record(int device, CudaEvent event, CudaStream stream) const {
  const Current current(*this, device);
  check(functions_->event_record(event, stream), "cuEventRecord");
}

void CudaDriver::stream_waits(int device, CudaStream stream, CudaEvent event) const {
  const Current current(*this, device);
  check(functions_->stream_wait_event(stream, event, 0), "cuStreamWaitEvent");
}

bool CudaDriver::finished(int device, CudaEvent event) const {
  const Current current(*this, device);
  const int status = functions_->event_query(event);
  if (status == kNotReady) return false;
  check(status, "cuEventQuery");
  return true;
}

void CudaDriver::wait(int device, CudaEvent event) const {
  const Current current(*this, device);
  check(functions_->event_synchronize(event), "cuEventSynchronize");
}

void CudaDriver::copy(int device, void* destination, const void* source, std::size_t bytes,
                      CudaStream stream) const {
  const Current current(*this, device);
  check(functions_->copy_async(reinterpret_cast<std::uintptr_t>(destination),
                               reinterpret_cast<std::uintptr_t>(source), bytes, stream),
        "cuMemcpyAsync");
}

const CudaDriver& cuda_driver() {
  // Another library may replace the driver, as in the tests.
  static const CudaDriver* driver = [] {
    const char* named = std::getenv("VIDGEN_CUDA_DRIVER");
    return new CudaDriver(named == nullptr ? "libcuda.so.1" : named);
  }();
  if (!driver->problem().empty()) throw std::runtime_error(driver->problem());
  return *driver;
}

int numa_node_of_device(int device) {
  std::ifstream file("/sys/bus/pci/devices/" + cuda_driver().pci_address(device) + "/numa_node");
  int node = -1;
  file >> node;
  return file ? node : -1;
}

}  // namespace vidgen
