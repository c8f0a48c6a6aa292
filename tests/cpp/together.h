// Tasks for the kernels' tests: each on a thread of its own, at the same time, or one after the
// other, the last one first, where nothing races.
#pragma once

#include <thread>
#include <utility>
#include <vector>

#include "layer.h"

// Threads that are joined where their scope ends. LLVM's library has no std::jthread.
class Threads {
 public:
  Threads() = default;
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { join(); }

  template <class... Body>
  void emplace_back(Body&&... body) {
    threads_.emplace_back(std::forward<Body>(body)...);
  }
  size_t size() const { return threads_.size(); }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

inline fastrnn::Parallel in_turn(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            for (int64_t i = n; i-- > 0;) body(i, context);
          }};
}
inline fastrnn::Parallel together(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            Threads running;
            for (int64_t i = 0; i < n; ++i) running.emplace_back(body, i, context);
          }};
}
