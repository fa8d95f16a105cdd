#include "emulator.h"

#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "fiber.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl vidgen_switch_stack
.type vidgen_switch_stack, @function
vidgen_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size vidgen_switch_stack, .-vidgen_switch_stack
)");
#endif

namespace vidgen::emulator {
namespace {

constexpr std::size_t kStack = 128 * 1024;

struct Copy {
  uint32_t to;
  const void* source;
  int bytes, valid;
};

struct Thread {
  Index index;
  int warp = 0, lane = 0;
  const char* waiting_for = nullptr;
  bool done = false;
  Context context;
  std::vector<Copy> open;                // copies of the group not yet committed
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
  const char* what = nullptr;
  unsigned mask = 0, arrived = 0;
  void* operands[kLanes] = {};
};

// One launch; there is never more than one.
struct Run {
  const char* kernel;
  std::size_t shared_bytes;
  unsigned char* shared;
  const std::function<void()>& body;
  std::mt19937_64 random = {};
  std::vector<Thread> threads = {};
  std::vector<Warp> warps = {};
  std::vector<Thread*> ready = {};
  std::vector<Thread*> at_barrier = {};
  Thread* current = nullptr;
  Context host = {};
  sigjmp_buf escape = {};
  std::string failure = {};
};

Run* active = nullptr;

// Stacks are kept between launches.
char* stack_of(std::size_t thread) {
  static std::vector<void*> stacks;
  while (stacks.size() <= thread) stacks.push_back(allocate(kStack, true));
  return static_cast<char*>(stacks[thread]);
}

std::string place() {
  const auto text = [](const Index& i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) +
           ")";
  };
  std::string result = std::string(active->kernel) + ", block " + text(block_index);
  if (active->current != nullptr) result += ", thread " + text(active->current->index);
  return result;
}

void suspend() { Context::change(active->current->context, active->host); }

void enter() {
  active->body();
  active->current->done = true;
  suspend();
}

void run_block() {
  Run& run = *active;
  std::memset(run.shared, 0xff, run.shared_bytes);
  run.ready.clear();
  run.at_barrier.clear();
  for (Warp& warp : run.warps) warp = Warp();
  for (std::size_t i = 0; i < run.threads.size(); ++i) {
    Thread& thread = run.threads[i];
    thread.waiting_for = nullptr;
    thread.done = false;
    thread.open.clear();
    thread.groups.clear();
    thread.context.start(stack_of(i), kStack, enter);
    run.ready.push_back(&thread);
  }
  std::size_t finished = 0;
  while (!run.ready.empty()) {
    const std::size_t pick = run.random() % run.ready.size();
    run.current = run.ready[pick];
    run.ready[pick] = run.ready.back();
    run.ready.pop_back();
    thread_index = run.current->index;
    Context::change(run.host, run.current->context);
    if (run.current->done) ++finished;
  }
  if (finished == run.threads.size()) return;
  std::map<std::string, int> where;
  for (const Thread& thread : run.threads) {
    if (thread.waiting_for != nullptr) ++where[thread.waiting_for];
  }
  run.current = nullptr;
  std::string message = "threads wait for others that never come:";
  for (const auto& [what, count] : where) message += " " + std::to_string(count) + " at " + what;
  fail(message + "; " + std::to_string(finished) + " have left");
}

void caught(int signal, siginfo_t* info, void*) {
  char address[32];
  snprintf(address, sizeof address, "%p", info->si_addr);
  const std::string at = std::string(" at address ") + address;
  switch (signal) {
    case SIGSEGV:
    case SIGBUS:
      active->failure = "touched memory it does not own" + at;
      break;
    default:
      active->failure = "computed what is undefined, or a misaligned address";
  }
  siglongjmp(active->escape, 1);
}

class Signals {
 public:
  Signals() {
    struct sigaction action = {};
    action.sa_sigaction = caught;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < kCount; ++i) sigaction(kCaught[i], &action, &before_[i]);
    static char memory[64 * 1024];
    stack_t stack = {};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, &stack_before_);
  }
  ~Signals() {
    for (int i = 0; i < kCount; ++i) sigaction(kCaught[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr int kCaught[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
  static constexpr int kCount = sizeof kCaught / sizeof kCaught[0];
  struct sigaction before_[kCount];
  stack_t stack_before_;
};

// Signals leave these frames by a jump, so nothing here has a destructor.
void run_blocks(const std::vector<uint64_t>& order) {
  if (sigsetjmp(active->escape, 1) != 0) return;
  for (uint64_t number : order) {
    block_index = {static_cast<unsigned>(number % grid_size.x),
                   static_cast<unsigned>(number / grid_size.x % grid_size.y),
                   static_cast<unsigned>(number / grid_size.x / grid_size.y)};
    run_block();
  }
}

void check_sizes(const char* kernel, Index grid, Index block, std::size_t shared_bytes) {
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error(std::string(kernel) + ": " + why);
  };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) {
    refuse("a block of " + std::to_string(threads) + " threads");
  }
  if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
      grid.z > 65535) {
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
           std::to_string(grid.z) + " blocks");
  }
  if (shared_bytes > settings().most_shared) {
    refuse("asks for " + std::to_string(shared_bytes) + " bytes of shared memory");
  }
}

void perform(const Copy& copy) {
  unsigned char* to = active->shared + copy.to;
  std::memcpy(to, copy.source, static_cast<std::size_t>(copy.valid));
  std::memset(to + copy.valid, 0, static_cast<std::size_t>(copy.bytes - copy.valid));
}

}  // namespace

Index thread_index, block_index, block_size, grid_size;

Settings& settings() {
  static Settings value;
  return value;
}

Counts& counts() {
  static Counts value;
  return value;
}

std::size_t& allowed_shared_of(const void* kernel) {
  static std::map<const void*, std::size_t> table;
  return table.emplace(kernel, 48 * 1024).first->second;
}

void run(const char* kernel, Index grid, Index block, std::size_t shared_bytes,
         const std::function<void()>& body) {
  check_sizes(kernel, grid, block, shared_bytes);
  if (active != nullptr) throw std::logic_error("a kernel launches a kernel");
  ++counts().launches;
  const std::size_t count = std::size_t{block.x} * block.y * block.z;
  // Padded at its front: kernels rely on 128 bytes of alignment, and the end meets the guard page.
  const std::size_t padded = (shared_bytes + 127) / 128 * 128;
  auto* memory = static_cast<unsigned char*>(allocate(padded, true));
  Run state{kernel, shared_bytes, memory, body};
  state.random.seed(settings().seed);
  state.threads.resize(count);
  state.warps.resize(count / kLanes);
  for (std::size_t i = 0; i < count; ++i) {
    Thread& thread = state.threads[i];
    thread.index = {static_cast<unsigned>(i % block.x),
                    static_cast<unsigned>(i / block.x % block.y),
                    static_cast<unsigned>(i / block.x / block.y)};
    thread.warp = static_cast<int>(i) / kLanes;
    thread.lane = static_cast<int>(i) % kLanes;
  }
  stack_of(count - 1);
  std::vector<uint64_t> order(uint64_t{grid.x} * grid.y * grid.z);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), state.random);
  active = &state;
  grid_size = grid;
  block_size = block;
  {
    Signals signals;
    run_blocks(order);
  }
  const std::string failure = state.failure.empty() ? "" : place() + ": " + state.failure;
  active = nullptr;
  release(memory);
  if (!failure.empty()) throw std::runtime_error(failure);
}

unsigned char* shared_memory() { return active->shared; }
std::size_t shared_bytes() { return active->shared_bytes; }

void block_barrier() {
  Run& run = *active;
  run.at_barrier.push_back(run.current);
  if (run.at_barrier.size() < run.threads.size()) {
    run.current->waiting_for = "__syncthreads";
    suspend();
    return;
  }
  ++counts().barriers;
  for (Thread* thread : run.at_barrier) {
    thread->waiting_for = nullptr;
    run.ready.push_back(thread);
  }
  run.at_barrier.clear();
  suspend();
}

void warp_collective(const char* what, unsigned mask, void* operand,
                     void (*act)(void* const (&operands)[kLanes])) {
  Run& run = *active;
  Thread& mine = *run.current;
  Warp& warp = run.warps[static_cast<std::size_t>(mine.warp)];
  const unsigned bit = 1u << mine.lane;
  if ((mask & bit) == 0) fail(std::string(what) + " with a mask that leaves out the caller");
  if (warp.arrived == 0) {
    warp.what = what;
    warp.mask = mask;
    std::fill(std::begin(warp.operands), std::end(warp.operands), nullptr);
  } else if (std::strcmp(warp.what, what) != 0 || warp.mask != mask) {
    fail(std::string("a lane is at ") + what + " while others of its warp are at " + warp.what);
  }
  warp.arrived |= bit;
  warp.operands[mine.lane] = operand;
  if (warp.arrived != mask) {
    mine.waiting_for = what;
    suspend();
    return;
  }
  act(warp.operands);
  warp.arrived = 0;
  const std::size_t first = static_cast<std::size_t>(mine.warp) * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread& other = run.threads[first + static_cast<std::size_t>(lane)];
    if ((mask >> lane & 1u) == 0 || &other == &mine) continue;
    other.waiting_for = nullptr;
    run.ready.push_back(&other);
  }
}

void copy_async(uint32_t to, const void* source, int bytes, int valid) {
  Run& run = *active;
  if (to % static_cast<uint32_t>(bytes) != 0 ||
      reinterpret_cast<uintptr_t>(source) % static_cast<uintptr_t>(bytes) != 0) {
    fail("an asynchronous copy from or to a misaligned address");
  }
  if (std::size_t{to} + static_cast<std::size_t>(bytes) > run.shared_bytes) {
    fail("an asynchronous copy past the end of shared memory");
  }
  const Copy copy{to, source, bytes, valid};
  ++counts().copies;
  if (run.random() % 2 == 0) {
    perform(copy);
  } else {
    run.current->open.push_back(copy);
  }
}

void commit_copies() {
  Thread& mine = *active->current;
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

void wait_for_copies(int groups_left) {
  auto& groups = active->current->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& copy : groups.front()) perform(copy);
    groups.pop_front();
  }
}

void fail(const std::string& what) {
  active->failure = what;
  siglongjmp(active->escape, 1);
}

}  // namespace vidgen::emulator
