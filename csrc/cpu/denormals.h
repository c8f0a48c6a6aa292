// Denormal numbers, those below 2^-126 or, of double, 2^-1022, as zeros: an instruction that meets
// one takes a hundred times as long on many a core.
#pragma once

#include <cstdint>
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace fastrnn::cpu {

// For as long as it lives, this thread's arithmetic takes denormal numbers for zeros and returns
// zeros in their place; then the thread has its own state back. On CPUs other than x86 and 64-bit
// ARM nothing changes. To be held while no thread is started: a thread inherits the state of the
// one that starts it, and keeps it.
class FlushDenormals {
 public:
  FlushDenormals() : before_(read()) {
    if (before_ != (before_ | kFlush)) write(before_ | kFlush);
  }
  ~FlushDenormals() {
    if (before_ != (before_ | kFlush)) write(before_);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using State = unsigned;
  static constexpr State kFlush = 0x8040;  // MXCSR: results (FTZ) and operands (DAZ)
  static State read() { return _mm_getcsr(); }
  static void write(State state) { _mm_setcsr(state); }
#elif defined(__aarch64__) && defined(__GNUC__)
  using State = uint64_t;
  static constexpr State kFlush = 1 << 24;  // FPCR: FZ, results and operands
  static State read() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state) : : "memory");
    return state;
  }
  static void write(State state) { asm volatile("msr fpcr, %0" : : "r"(state) : "memory"); }
#else
  using State = unsigned;
  static constexpr State kFlush = 0;
  static State read() { return 0; }
  static void write(State) {}
#endif

  const State before_;
};

}  // namespace fastrnn::cpu
