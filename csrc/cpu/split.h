// Choices between ways to compute the same: pure functions of sizes and of a CPU's constants.
// The first is how the loop over time of one direction is shared by threads: by batch rows, which
// never meet, by units, whose threads meet at every step but read only their own part of the
// weights, or, where there are more threads than one of the two can use, by both.
#pragma once

#include <cstdint>

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastrnn::cpu {

struct StepWork {
  int64_t batch;     // rows of a step
  int64_t outputs;   // G H, numbers that a step's product makes for each row
  int64_t depth;     // terms of each
  int64_t itemsize;  // bytes of a number
};

struct Split {
  int64_t rows, units;  // pieces; a thread has one of the rows and one of the units
  int64_t slices = 1;   // that each thread's units are cut into, for others to help with
};

// What a step costs, in nanoseconds. From a core with AVX2: what matters is how the costs compare,
// which is much the same on others.
struct StepCosts {
  double flops = 80;                         // of float32, per ns
  double near = 320 * 1024;                  // bytes of weights that a core keeps
  double near_bytes = 60, far_bytes = 40;    // of these and of others, per ns
  double meeting = 1000, each_member = 150;  // of the threads that share the units
};

// Nanoseconds of a step on the busiest thread.
inline double step_time(const StepWork& w, Split split, const StepCosts& costs = {}) {
  const auto share = [](int64_t count, int64_t n) { return (count + n - 1) / n; };
  const int64_t outputs = share(w.outputs, split.units), rows = share(w.batch, split.rows);
  const double flops = 2.0 * rows * outputs * w.depth, bytes = 1.0 * outputs * w.depth * w.itemsize;
  return flops / (costs.flops * 4 / w.itemsize) +
         bytes / (bytes <= costs.near ? costs.near_bytes : costs.far_bytes) +
         (split.units > 1 ? costs.meeting + costs.each_member * split.units : 0);
}

// Whether tiles make the products of float faster than FMAs do, of the first so many parts
// (parts.h). From what a Xeon with AMX reached: a tile of 16 rows, full or not, makes six products
// in half the time of its FMAs, three in a quarter and one in an eighth, and what a depth lacks to
// a multiple of 32 is made, too. Parts of weights, two bytes each, come from afar at 25 to 30 GB/s,
// at which two parts take as long as the FMAs of 15 rows. Of far weights 20 rows of 650 terms, the
// 19 here, gained by two parts 1.4, and 64 by three 1.5.
inline bool parts_pay(const StepWork& w, int parts) {
  constexpr int64_t kBlock = 32;
  constexpr double kMebibyte = 1 << 20;
  constexpr int kRows[3][3] = {{4, 4, 4}, {8, 16, 19}, {16, 32, 64}};  // parts; near, farther, far
  const double bytes = 2.0 * w.outputs * w.depth * parts;
  const int distance = bytes <= 1.8 * kMebibyte ? 0 : bytes <= 6 * kMebibyte ? 1 : 2;
  const int64_t made = (w.depth + kBlock - 1) / kBlock * kBlock;
  return w.batch * w.depth >= kRows[parts - 1][distance] * made;
}

// Whether a layer of float is faster with products of pairs of bfloat16, in half the time, than
// with FMAs: what rounding costs grows with the units, what it saves with the weights of a step. Of
// a Zen 4 beside other work: LSTM and GRU from 64 units on and RNN from 128 took 0.52 to 0.78 of
// the time in inference and 0.53 to 1.0 in training. At the least here, 32 units of an LSTM and 64
// of an RNN, it was 0.75 to 1.1, and with a quarter of that 0.83 to 1.25. A smaller call takes so
// little time that Python does not ask whether it may round (LARGE of fastrnn/dispatch/cpu).
inline bool rounding_pays(const StepWork& w, int64_t steps) {
  return w.outputs * w.depth >= 4096 && steps * w.batch * w.depth * w.depth >= 65536;
}

// Whether tiles multiply so many rows by int8 faster than VNNI does, which reads the weights for up
// to four rows at once. In cycles of a Xeon with AMX, for 1 KiB of weights: that from the second
// level, as bfloat16 has it, 29 with one product of tiles and 43 with two, of which activations of
// 16 bits need two, however many rows there are; VNNI 8 and 16 a row, at two products a cycle, but
// not less than the reading. Tiles are chosen where that makes it 1.25 times as long.
inline bool byte_tiles_pay(int64_t rows, bool wide) {
  const double tiles = wide ? 43 : 29, row = wide ? 16 : 8, reading = 29;
  double vnni = 0;
  for (; rows > 0; rows -= 4) {
    const double products = row * (rows < 4 ? rows : 4);
    vnni += products < reading ? reading : products;
  }
  return vnni >= 1.25 * tiles;
}

// Bytes of a panel that a micro-kernel runs over at once. The first-level cache holds 16 KiB beside
// rows of the left matrix, which suits a core that begins two FMAs of 64 bytes in a cycle. A Zen 4,
// of AMD's family 19h, begins one. Its second-level cache keeps up with that, and longer pieces
// store their sums less often.
inline constexpr int64_t kPanelBytes = 16 * 1024, kPanelBytesOfZen4 = 64 * 1024;
inline int64_t panel_bytes_of(bool amd, int family) {
  return amd && family == 0x19 ? kPanelBytesOfZen4 : kPanelBytes;
}
inline int64_t panel_bytes_here() {
#if defined(__GNUC__) && defined(__x86_64__)
  unsigned a, b, c, d;
  __builtin_cpu_init();
  if (__get_cpuid(1, &a, &b, &c, &d)) {
    const unsigned family = (a >> 8 & 0xf) + (a >> 20 & 0xff);
    return panel_bytes_of(__builtin_cpu_is("amd"), static_cast<int>(family));
  }
#endif
  return panel_bytes_of(false, 0);
}
inline int64_t panel_bytes = panel_bytes_here();  // tests alone change it

// Nanoseconds from which on a thread that is late costs more than the weights of a slice that moves
// to another core.
constexpr double kLongStep = 50'000;

// The best for up to `threads` threads, where units can be cut into `most_units` pieces. Rows go in
// pairs at least. Rows alone win unless something is faster by a tenth, since threads that never
// meet do not wait for one that has lost its core.
inline Split split_step(const StepWork& w, int64_t threads, int64_t most_units,
                        const StepCosts& costs = {}) {
  const auto at_least_1 = [](int64_t n) { return n < 1 ? 1 : n; };
  const int64_t pairs = w.batch / 2;
  const Split rows{at_least_1(threads < pairs ? threads : pairs), 1};
  Split best{1, at_least_1(threads < most_units ? threads : most_units)};
  double time = step_time(w, best, costs);
  for (int64_t blocks = 2; blocks <= rows.rows && blocks * 2 <= threads && most_units > 1;
       ++blocks) {
    const int64_t members = threads / blocks;
    const Split both{blocks, members < most_units ? members : most_units};
    const double other = step_time(w, both, costs);
    if (other >= time) continue;
    best = both;
    time = other;
  }
  if (time > kLongStep) best.slices = 4;
  return time * 1.1 < step_time(w, rows, costs) ? best : rows;
}

}  // namespace fastrnn::cpu
