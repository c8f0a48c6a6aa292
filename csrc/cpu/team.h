// Threads that go through a loop in step with one another, each with a slice of every phase.
//
// A thread takes its own slice first, so the same core meets the same slice, and the weights in it,
// phase after phase. It then waits for the others; but a slice that its owner has not begun,
// because that thread has not come yet or has lost its core, is taken by whoever waits. So the loop
// goes on with however many threads there are, in the extreme with one that comes after another.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

namespace fastrnn::cpu {

class Team {
 public:
  explicit Team(int64_t members)
      : members_(members), begun_(members > 1 ? new Counter[members] : nullptr) {}

  // For more than one member. body(phase, slice) for every phase in [first, last) and every slice
  // in [0, members), each once; no phase begins before the one before it has ended. To be called by
  // each member, with the same range; the range of the next call begins where this one ended.
  template <class F>
  void run(int64_t member, int64_t first, int64_t last, F&& body) {
    for (int64_t phase = first; phase < last; ++phase) {
      const int64_t end = (phase + 1) * members_;
      if (take(member, phase)) finish(body, phase, member);
      for (int64_t waited = 0; ended_.load(std::memory_order_acquire) < end; ++waited) {
        if (waited < kPatience) continue;
        for (int64_t slice = 0; slice < members_; ++slice)
          if (take(slice, phase)) finish(body, phase, slice);
        std::this_thread::yield();
      }
    }
  }

 private:
  // Looks at the others' progress before a thread helps: some microseconds.
  static constexpr int64_t kPatience = 2000;

  struct alignas(64) Counter {
    std::atomic<int64_t> phases{0};
  };

  // Whether the caller is the one to do this slice of this phase.
  bool take(int64_t slice, int64_t phase) {
    return begun_[slice].phases.compare_exchange_strong(phase, phase + 1,
                                                        std::memory_order_acquire);
  }
  template <class F>
  void finish(F& body, int64_t phase, int64_t slice) {
    body(phase, slice);
    ended_.fetch_add(1, std::memory_order_acq_rel);
  }

  const int64_t members_;
  std::unique_ptr<Counter[]> begun_;           // of each slice, how many phases
  alignas(64) std::atomic<int64_t> ended_{0};  // slices of all phases
};

}  // namespace fastrnn::cpu
