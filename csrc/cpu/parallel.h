// torch's own pool of threads, as layer.h wants it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "fork.h"
#include "layer.h"

namespace fastrnn::cpu {

inline Parallel parallel() {
  if (forked_from_threads()) return {1, nullptr};
  return {torch::stable::get_num_threads(),
          [](int64_t n, void (*body)(int64_t, void*), void* context) {
            used_threads = true;
            torch::stable::parallel_for(0, n, 1, [&](int64_t first, int64_t last) {
              for (int64_t i = first; i < last; ++i) body(i, context);
            });
          }};
}

}  // namespace fastrnn::cpu
