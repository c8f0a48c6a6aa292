// Tasks on several threads, whose exceptions come back to the caller: one that left a thread of a
// pool would end the process.
#pragma once

#include <atomic>
#include <exception>

#include "layer.h"

namespace fastrnn::cpu {

// body(i, context) for every i in [0, n). When all have ended, throws what the first that failed
// has thrown.
inline void run_tasks(const Parallel& parallel, int64_t n, void (*body)(int64_t, void*),
                      void* context) {
  struct Tasks {
    void (*body)(int64_t, void*);
    void* context;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } tasks{body, context, false, nullptr};
  parallel.run(
      n,
      [](int64_t i, void* all) {
        Tasks& t = *static_cast<Tasks*>(all);
        try {
          t.body(i, t.context);
        } catch (...) {
          if (!t.failed.exchange(true)) t.error = std::current_exception();
        }
      },
      &tasks);
  if (tasks.error) std::rethrow_exception(tasks.error);
}

}  // namespace fastrnn::cpu
