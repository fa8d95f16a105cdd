// Threads for the CPU kernels: the process's existing OpenMP team, or else a separate pool.
//
// torch keeps an OpenMP team whose threads spin for a while after each of its operators. A second
// pool would compete with them for the cores, so if libgomp is already loaded, the kernels run on
// the same team.
#include "host/parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace vidgen {
namespace {

struct Job {
  ChunkFunction function;
  void* context;
  int64_t chunks;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      function(context, chunk);
    }
  }
};

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_openmp_team() {
  // A sanitizer cannot see into libgomp's synchronisation; tests ask for the pool instead.
  if (std::getenv("VIDGEN_OWN_THREADS") != nullptr) return nullptr;
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// Workers sleep between jobs; the caller is one of the threads of every job.
class Pool {
 public:
  void run(Job& job, int threads) {
    std::lock_guard<std::mutex> one_job_at_a_time(entry_);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      workers_.emplace_back([this, index = static_cast<int>(workers_.size())] { serve(index); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = threads - 1;
      running_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    job_ = nullptr;
  }

 private:
  void serve(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    // A worker made for this job must not sleep through it: only the generation before it is seen.
    seen = job_ == nullptr ? generation_ : generation_ - 1;
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= wanted_) continue;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex entry_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  int running_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: workers wait on it until the process ends. A forked child has none of its
// parent's threads, so it starts with a pool of its own.
Pool& pool() {
  static std::mutex mutex;
  static Pool* current = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (current == nullptr || owner != getpid()) {
    current = new Pool;
    owner = getpid();
  }
  return *current;
}

thread_local bool inside_a_job = false;

void work_as_member(void* job) {
  const bool outer = inside_a_job;
  inside_a_job = true;
  static_cast<Job*>(job)->work();
  inside_a_job = outer;
}

struct Scratch {
  float* data = nullptr;
  std::size_t floats = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

void parallel_chunks(int64_t chunks, int threads, ChunkFunction function, void* context) {
  if (threads > chunks) threads = static_cast<int>(chunks);
  if (threads <= 1 || inside_a_job) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) function(context, chunk);
    return;
  }
  static const GompParallel openmp_team = find_openmp_team();
  Job job{function, context, chunks};
  if (openmp_team != nullptr) {
    openmp_team(work_as_member, &job, static_cast<unsigned>(threads), 0);
  } else {
    pool().run(job, threads);
  }
}

float* allocate_floats(std::size_t floats) {
  const std::size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  float* memory = static_cast<float*>(std::aligned_alloc(64, bytes > 0 ? bytes : 64));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void free_floats(float* memory) { std::free(memory); }

float* scratch(std::size_t floats) {
  thread_local Scratch memory;
  if (memory.floats < floats) {
    std::free(memory.data);
    memory.data = nullptr;
    memory.floats = 0;
    memory.data = allocate_floats(floats);
    memory.floats = floats;
  }
  return memory.data;
}

}  // namespace vidgen
