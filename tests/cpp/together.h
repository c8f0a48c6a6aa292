// Tasks for the kernels' tests: each on a thread of its own, at the same time, or one after the
// other, the last one first, where nothing races.
#pragma once

#include <thread>
#include <vector>

#include "layer.h"

inline fastrnn::Parallel in_turn(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            for (int64_t i = n; i-- > 0;) body(i, context);
          }};
}
inline fastrnn::Parallel together(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            std::vector<std::jthread> running;
            for (int64_t i = 0; i < n; ++i) running.emplace_back(body, i, context);
          }};
}
