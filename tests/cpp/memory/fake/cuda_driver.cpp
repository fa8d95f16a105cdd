// As much of a CUDA driver as lanes need. Nothing on a stream happens before somebody waits or
// asks, and then in an order that changes from call to call: a missing edge shows.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <vector>

namespace {

struct Event {
  std::uint64_t recorded = 0, reached = 0;  // the newest record() put on a stream, and done
};

struct Stream {
  // Each says whether it could be done.
  std::deque<std::function<bool()>> work;
};

std::mutex mutex;
std::mt19937 random_number(1);
std::vector<std::unique_ptr<Stream>> streams;  // never freed: a test's few
std::vector<std::unique_ptr<Event>> events;
std::set<void*> registered;
thread_local int pushed = 0;

bool advance() {
  std::vector<Stream*> candidates;
  for (const auto& stream : streams) {
    if (!stream->work.empty()) candidates.push_back(stream.get());
  }
  std::shuffle(candidates.begin(), candidates.end(), random_number);
  for (Stream* stream : candidates) {
    if (stream->work.front()()) {
      stream->work.pop_front();
      return true;
    }
  }
  return false;
}

constexpr int kInvalid = 1, kNoContext = 201, kNotReady = 600;

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int index) {
  *device = index;
  return index == 0 ? 0 : 101;
}
int cuDeviceGetPCIBusId(char* text, int length, int) {
  std::strncpy(text, "0000:FF:1F.7", static_cast<std::size_t>(length));
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &mutex;
  return 0;
}
int cuCtxPushCurrent_v2(void* context) {
  ++pushed;
  return context == &mutex ? 0 : kInvalid;
}
int cuCtxPopCurrent_v2(void**) {
  --pushed;
  return 0;
}
int cuMemHostRegister_v2(void* data, std::size_t, unsigned flags) {
  std::lock_guard<std::mutex> lock(mutex);
  if (pushed == 0) return kNoContext;
  return flags == 1 && registered.insert(data).second ? 0 : kInvalid;
}
int cuMemHostUnregister(void* data) {
  std::lock_guard<std::mutex> lock(mutex);
  return registered.erase(data) == 1 ? 0 : kInvalid;
}
int cuStreamCreate(void** stream, unsigned) {
  std::lock_guard<std::mutex> lock(mutex);
  if (pushed == 0) return kNoContext;
  streams.push_back(std::make_unique<Stream>());
  *stream = streams.back().get();
  return 0;
}
int cuStreamDestroy_v2(void*) { return 0; }
int cuEventCreate(void** event, unsigned) {
  std::lock_guard<std::mutex> lock(mutex);
  if (pushed == 0) return kNoContext;
  events.push_back(std::make_unique<Event>());
  *event = events.back().get();
  return 0;
}
int cuEventDestroy_v2(void*) { return 0; }
int cuEventRecord(void* event, void* stream) {
  std::lock_guard<std::mutex> lock(mutex);
  auto* mark = static_cast<Event*>(event);
  const std::uint64_t number = ++mark->recorded;
  static_cast<Stream*>(stream)->work.push_back([=] {
    mark->reached = number;
    return true;
  });
  return 0;
}
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
  std::lock_guard<std::mutex> lock(mutex);
  auto* mark = static_cast<Event*>(event);
  const std::uint64_t number = mark->recorded;
  static_cast<Stream*>(stream)->work.push_back([=] { return mark->reached >= number; });
  return 0;
}
int cuEventQuery(void* event) {
  std::lock_guard<std::mutex> lock(mutex);
  auto* mark = static_cast<Event*>(event);
  if (mark->reached < mark->recorded) advance();
  return mark->reached < mark->recorded ? kNotReady : 0;
}
int cuEventSynchronize(void* event) {
  std::lock_guard<std::mutex> lock(mutex);
  auto* mark = static_cast<Event*>(event);
  while (mark->reached < mark->recorded) {
    if (!advance()) return kInvalid;  // it would wait for ever
  }
  return 0;
}
int cuMemcpyAsync(std::uintptr_t to, std::uintptr_t from, std::size_t bytes, void* stream) {
  std::lock_guard<std::mutex> lock(mutex);
  if (pushed == 0) return kNoContext;
  static_cast<Stream*>(stream)->work.push_back([=] {
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    return true;
  });
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "fake failure";
  return 0;
}

}  // extern "C"
