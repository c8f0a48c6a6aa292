// Denormal numbers are zeros inside a task of `run`, and nowhere else: not before, not after, not
// on a thread that a call started, not after an exception.
#include <cfloat>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "check.h"
#include "together.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 16
#include "cpu/denormals.h"
#include "cpu/live.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/team.h"
#include "cpu/schedule.h"

using emulated::Parallel;
using fastrnn::cpu::FlushDenormals;

#if defined(__x86_64__) || defined(__aarch64__)
constexpr bool kFlushes = true;
#else
constexpr bool kFlushes = false;
#endif

// Whether this thread has denormal numbers, as results and as operands, of both types.
template <class T>
bool has(T smallest) {
  const volatile T normal = smallest, tiny = smallest / 8, half = T(0.5), many = T(64);
  const volatile T result = normal * half, back = tiny * many;
  return result != 0 && back != 0;
}
bool has_denormals() {
  const bool floats = has(FLT_MIN), doubles = has(DBL_MIN);
  CHECK(floats == doubles, "of float and double one is flushed");
  return floats;
}

void test_guard() {
  CHECK(has_denormals(), "before");
  {
    const FlushDenormals flush;
    CHECK(has_denormals() != kFlushes, "inside");
    {
      const FlushDenormals again;
      CHECK(has_denormals() != kFlushes, "inside twice");
    }
    CHECK(has_denormals() != kFlushes, "a caller's state is kept, flushing too");
  }
  CHECK(has_denormals(), "after");
}

// A task for each of 5, on threads that were there before or on new ones.
void test_run() {
  auto inside = [](int64_t) { CHECK(has_denormals() != kFlushes, "in a task"); };
  emulated::run({1, nullptr}, 5, inside);
  CHECK(has_denormals(), "after tasks on this thread");
  const Parallel parallel{3, [](int64_t n, void (*body)(int64_t, void*), void* context) {
                            CHECK(has_denormals(), "where threads are started");
                            Threads threads;
                            for (int64_t i = 0; i < n; ++i)
                              threads.emplace_back([=] {
                                CHECK(has_denormals(), "on a new thread");
                                body(i, context);
                                CHECK(has_denormals(), "on a thread that has had a task");
                              });
                          }};
  emulated::run(parallel, 5, inside);
  CHECK(has_denormals(), "after tasks on other threads");
}

void test_exceptions() {
  const auto thrown = [](const Parallel& parallel) {
    try {
      emulated::run(parallel, 2, [](int64_t) { throw std::runtime_error("a task"); });
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  const Parallel in_turn{2, [](int64_t n, void (*body)(int64_t, void*), void* context) {
                           for (int64_t i = 0; i < n; ++i) body(i, context);
                         }};
  for (const Parallel& parallel : {Parallel{1, nullptr}, in_turn}) {
    CHECK(thrown(parallel), "an exception comes out");
    CHECK(has_denormals(), "after an exception");
  }
}

int main() {
  test_guard();
  test_run();
  test_exceptions();
  return report("test_denormals");
}
