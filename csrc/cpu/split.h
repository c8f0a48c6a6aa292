// How the loop over time of one direction is shared by threads: by batch rows, which never meet, or
// by units, whose threads meet at every step but read only their own part of the weights. A pure
// function of sizes.
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

struct StepWork {
  int64_t batch;     // rows of a step
  int64_t outputs;   // G H, numbers that a step's product makes for each row
  int64_t depth;     // terms of each
  int64_t itemsize;  // bytes of a number
};

struct Split {
  int64_t rows, units;  // pieces, one for each thread; one of the two is 1
  int64_t slices = 1;   // that each thread's units are cut into, for others to help with
};

// Nanoseconds of a step on the busiest of `pieces` threads, each with all weights or all rows. From
// a core with AVX2: what matters is how they compare, which is much the same on others.
inline double step_time(const StepWork& w, Split split) {
  constexpr double kFlopsPerNs = 80, kFloat = 4;        // of float32
  constexpr int64_t kNear = 320 * 1024;                 // bytes of weights that a core keeps
  constexpr double kNearBytes = 60, kFarBytes = 40;     // per ns
  constexpr double kMeeting = 1000, kEachMember = 150;  // of the threads of a step
  const auto share = [](int64_t count, int64_t n) { return (count + n - 1) / n; };
  const int64_t outputs = share(w.outputs, split.units), rows = share(w.batch, split.rows);
  const double flops = 2.0 * rows * outputs * w.depth, bytes = 1.0 * outputs * w.depth * w.itemsize;
  return flops / (kFlopsPerNs * kFloat / w.itemsize) +
         bytes / (bytes <= kNear ? kNearBytes : kFarBytes) +
         (split.units > 1 ? kMeeting + kEachMember * split.units : 0);
}

// Nanoseconds from which on a thread that is late costs more than the weights of a slice that moves
// to another core.
constexpr double kLongStep = 50'000;

// The better of the two for up to `threads` threads, where units can be cut into `most_units`
// pieces. Rows go in pairs at least. They win unless units are faster by a tenth, since threads
// that never meet do not wait for one that has lost its core.
inline Split split_step(const StepWork& w, int64_t threads, int64_t most_units) {
  const auto at_least_1 = [](int64_t n) { return n < 1 ? 1 : n; };
  const int64_t pairs = w.batch / 2;
  const Split rows{at_least_1(threads < pairs ? threads : pairs), 1};
  Split units{1, at_least_1(threads < most_units ? threads : most_units)};
  const double time = step_time(w, units);
  if (time > kLongStep) units.slices = 4;
  return time * 1.1 < step_time(w, rows) ? units : rows;
}

}  // namespace fastrnn::cpu
