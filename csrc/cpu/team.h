// Threads that go through a loop in step with one another, each with slices of every phase.
//
// A thread takes its own slices first, in order, so the same core meets the same ones, and the
// weights in them, phase after phase. Who is done goes on with those of the others that these have
// not begun, from the last one back: at once where a thread has several, so that a core that is
// slower keeps nobody waiting but for a slice, else after a while, when that thread has lost its
// core or has not come yet. So the loop goes on with however many threads there are, in the extreme
// with one that comes after another. A slice that throws counts as done, and its thread leaves: the
// others go on, with numbers that nobody will see, and wait for nobody.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

namespace fastrnn::cpu {

class Team {
 public:
  Team(int64_t members, int64_t slices_each)
      : members_(members),
        each_(slices_each),
        begun_(members > 1 ? new Counter[slices()] : nullptr) {}

  int64_t slices() const { return members_ * each_; }

  // For more than one member. body(phase, slice) for every phase in [first, last) and every slice
  // in [0, slices()), each once; no phase begins before the one before it has ended. To be called
  // by each member, with the same range; the range of the next call begins where this one ended.
  template <class F>
  void run(int64_t member, int64_t first, int64_t last, F&& body) {
    for (int64_t phase = first; phase < last; ++phase) {
      const int64_t end = (phase + 1) * slices();
      for (int64_t k = 0; k < each_; ++k) take(body, phase, member * each_ + k);
      if (each_ > 1) help(body, phase, member);
      for (int64_t waited = 0; ended_.load(std::memory_order_acquire) < end; ++waited) {
        if (waited < kPatience) continue;
        help(body, phase, member);
        std::this_thread::yield();
      }
    }
  }

 private:
  // Looks at the others' progress before a thread helps in any case: some microseconds.
  static constexpr int64_t kPatience = 2000;

  // Lines of x86 are fetched in pairs, and those of Apple's are 128 bytes long.
  static constexpr size_t kApart = 128;

  struct alignas(kApart) Counter {
    std::atomic<int64_t> phases{0};
  };
  struct Ended {
    std::atomic<int64_t>& slices;
    ~Ended() { slices.fetch_add(1, std::memory_order_acq_rel); }
  };

  // Does this slice of this phase if nobody has begun it.
  template <class F>
  void take(F& body, int64_t phase, int64_t slice) {
    std::atomic<int64_t>& phases = begun_[slice].phases;
    int64_t begun = phase;
    if (phases.load(std::memory_order_relaxed) != phase ||
        !phases.compare_exchange_strong(begun, phase + 1, std::memory_order_acquire))
      return;
    const Ended ended{ended_};
    body(phase, slice);
  }

  // Does what the others have not begun, each one's last slice first.
  template <class F>
  void help(F& body, int64_t phase, int64_t member) {
    const int64_t end = (phase + 1) * slices();
    for (int64_t other = 1; other < members_; ++other) {
      if (ended_.load(std::memory_order_acquire) >= end) return;  // not all look at all, then
      for (int64_t k = each_; k-- > 0;) take(body, phase, (member + other) % members_ * each_ + k);
    }
  }

  const int64_t members_, each_;
  std::unique_ptr<Counter[]> begun_;               // of each slice, how many phases
  alignas(kApart) std::atomic<int64_t> ended_{0};  // slices of all phases
};

}  // namespace fastrnn::cpu
