// What several threads find out together, in a loop over time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fastrnn::cpu {

// Which steps are live. Marks are seen by whoever is past a point where the threads met.
class Live {
 public:
  explicit Live(int64_t steps) : marks_(steps > 0 ? new std::atomic<bool>[steps]() : nullptr) {}

  void mark(int64_t step) { marks_[step].store(true, std::memory_order_relaxed); }
  bool at(int64_t step) const { return marks_[step].load(std::memory_order_relaxed); }
  // Makes the steps [first, last) end where live ones do, on both sides.
  void trim(int64_t& first, int64_t& last) const {
    while (first < last && !at(first)) ++first;
    while (first < last && !at(last - 1)) --last;
  }

 private:
  std::unique_ptr<std::atomic<bool>[]> marks_;
};

// A fact that is found when it is first asked for; by two threads at once, if both ask.
class Fact {
 public:
  template <class F>
  bool get(F&& find) {
    char known = known_.load(std::memory_order_relaxed);
    if (known == kUnknown) known_.store(known = find() ? kTrue : kFalse, std::memory_order_relaxed);
    return known == kTrue;
  }

 private:
  static constexpr char kUnknown = 0, kTrue = 1, kFalse = 2;
  std::atomic<char> known_{kUnknown};
};

}  // namespace fastrnn::cpu
