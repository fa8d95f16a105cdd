// A thread of execution that runs until it hands control back.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace vidgen::emulator {

#if defined(__x86_64__)

// Saves the registers a callee keeps on the running stack and goes on where `to` was left.
extern "C" void vidgen_switch_stack(void** from, void* to);

class Context {
 public:
  void start(void* stack, std::size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    *--top = nullptr;  // a return address for `entry`, which never returns
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
  }
  static void change(Context& from, Context& to) {
    vidgen_switch_stack(&from.pointer_, to.pointer_);
  }

 private:
  void* pointer_ = nullptr;
};

#else

class Context {
 public:
  void start(void* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace vidgen::emulator
