// The little that the C++ tests need: a check that counts, and random numbers, which are the same
// for each thread and with every library.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

inline std::atomic<int> failures = 0;

// Reports at most a few failures; printf-style context says where.
#define CHECK(condition, ...)                                           \
  do {                                                                  \
    if (!(condition) && ++failures <= 20) {                             \
      std::printf("%s:%d: not (%s): ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                         \
      std::printf("\n");                                                \
    }                                                                   \
  } while (false)

inline int report(const char* name) {
  std::printf("%s: %s (%d failures)\n", name, failures ? "FAILED" : "passed", failures.load());
  return failures ? 1 : 0;
}

inline std::mt19937& generator() {
  static thread_local std::mt19937 instance(1);
  return instance;
}
template <class T = double>
T uniform(double from = -1, double to = 1) {
  return static_cast<T>(from + (to - from) * (generator()() * 0x1p-32));
}
template <class T>
std::vector<T> uniform_vector(int64_t count, double scale = 1) {
  std::vector<T> v(count);
  for (T& x : v) x = uniform<T>(-scale, scale);
  return v;
}
