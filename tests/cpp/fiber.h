// Functions that can be left in the middle and gone on with later, each on a stack of its own.
//
// A switch is a few instructions on x86-64 and AArch64, and POSIX's swapcontext elsewhere or where
// FASTRNN_UCONTEXT is defined. Under the address sanitizer each stack is announced to it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(FASTRNN_UCONTEXT)
#define FASTRNN_UCONTEXT
#endif
#if defined(FASTRNN_UCONTEXT)
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTRNN_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define FASTRNN_ASAN 1
#endif
#if defined(FASTRNN_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(FASTRNN_UCONTEXT)
// void fastrnn_switch_stack(void** left, void* right): leaves the registers that a function must
// preserve on the stack, that stack's pointer in *left, and goes on from what such a call left at
// `right`. Once per program, however many files include this.
extern "C" void fastrnn_switch_stack(void** left, void* right);
asm(R"(
  .pushsection .text.fastrnn_switch_stack, "axG", %progbits, fastrnn_switch_stack, comdat
  .weak fastrnn_switch_stack
  .hidden fastrnn_switch_stack
  .type fastrnn_switch_stack, %function
fastrnn_switch_stack:)"
#if defined(__x86_64__)
    R"(
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
  popq %rax
  jmp *%rax)"
#else
    R"(
  sub sp, sp, #160
  stp x29, x30, [sp]
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x29, x30, [sp]
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret)"
#endif
    R"(
  .size fastrnn_switch_stack, . - fastrnn_switch_stack
  .popsection
)");
#endif

namespace fastrnn::cuda::emulate {

// Room for the frames of one fiber, above a page that no access survives. Stacks are used again and
// never unmapped; only the pages that were touched cost memory.
struct Stack {
  static constexpr size_t kBytes = 256 << 10;
  char* bottom = nullptr;
  size_t bytes = 0;

  static std::vector<Stack>& spare() {
    static auto* stacks = new std::vector<Stack>;  // outlives every fiber
    return *stacks;
  }
  static Stack take() {
    if (!spare().empty()) {
      const Stack stack = spare().back();
      spare().pop_back();
      return stack;
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    // Not all at the same distance from a page's end, or their frames would share few cache lines.
    static size_t count = 0;
    return {static_cast<char*>(memory) + page, kBytes - count++ % 64 * 320};
  }
};

// Where a stack was left.
struct Context {
#if defined(FASTRNN_UCONTEXT)
  ucontext_t registers;

  void enter_at(void (*entry)(), Stack stack) {
    getcontext(&registers);
    registers.uc_stack.ss_sp = stack.bottom;
    registers.uc_stack.ss_size = stack.bytes;
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
  }
  static void go(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
#else
  void* top;

  // As if `entry` had been left in front of its first instruction; no frame is below it.
  void enter_at(void (*entry)(), Stack stack) {
    auto* words = reinterpret_cast<uintptr_t*>(stack.bottom + stack.bytes);
#if defined(__x86_64__)
    words -= 8;
    for (int i = 0; i < 8; ++i) words[i] = 0;
    words[6] = reinterpret_cast<uintptr_t>(entry);  // words[7]: where it would return to
#else
    words -= 20;
    for (int i = 0; i < 20; ++i) words[i] = 0;
    words[1] = reinterpret_cast<uintptr_t>(entry);
#endif
    top = words;
  }
  static void go(Context& from, Context& to) { fastrnn_switch_stack(&from.top, to.top); }
#endif
};

// A function that can suspend itself. One runs at a time; it is never resumed by another.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  // What a fiber that has not ended holds in its frames is lost.
  ~Fiber() {
    if (stack.bottom == nullptr) return;
#if defined(FASTRNN_ASAN)
    if (!ended) ASAN_UNPOISON_MEMORY_REGION(stack.bottom, stack.bytes);  // the frames left there
#endif
    Stack::spare().push_back(stack);
  }

  // `body` must not let an exception out.
  void start(void (*body)(Fiber&)) {
    stack = Stack::take();
    function = body;
    inside.enter_at(enter, stack);
  }
  // Runs the function until it suspends itself or returns.
  void resume() {
    running = this;
#if defined(FASTRNN_ASAN)
    void* frames;
    __sanitizer_start_switch_fiber(&frames, stack.bottom, stack.bytes);
#endif
    Context::go(outside, inside);
#if defined(FASTRNN_ASAN)
    __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#endif
    running = nullptr;
  }
  // Called by the function: resume returns, and the next resume goes on here.
  void suspend() {
#if defined(FASTRNN_ASAN)
    void* frames;
    __sanitizer_start_switch_fiber(&frames, outside_bottom, outside_bytes);
#endif
    Context::go(inside, outside);
#if defined(FASTRNN_ASAN)
    __sanitizer_finish_switch_fiber(frames, &outside_bottom, &outside_bytes);
#endif
  }

  static inline Fiber* running = nullptr;
  bool ended = false;

 private:
#if defined(FASTRNN_ASAN)
  __attribute__((no_sanitize("address")))  // its frame is never left, so nothing of it is marked
#endif
  static void enter() {
    Fiber& self = *running;
#if defined(FASTRNN_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &outside_bottom, &outside_bytes);
#endif
    self.function(self);
    self.ended = true;
#if defined(FASTRNN_ASAN)
    __sanitizer_start_switch_fiber(nullptr, outside_bottom, outside_bytes);
#endif
    Context::go(self.inside, outside);
    __builtin_unreachable();
  }

  static inline Context outside;
#if defined(FASTRNN_ASAN)
  static inline const void* outside_bottom;
  static inline size_t outside_bytes;
#endif

  Context inside;
  Stack stack;
  void (*function)(Fiber&) = nullptr;
};

}  // namespace fastrnn::cuda::emulate
