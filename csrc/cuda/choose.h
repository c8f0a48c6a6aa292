// Which schedule runs a loop over time, and its tiles: pure functions of sizes, no CUDA.
//
// The constants are fitted to what an H200 took (bench/results/nvidia-h200-plans.csv, replayed from
// a graph): over its 164 loops the plan that is chosen takes 0.5 % longer than the better one in
// the geometric mean, and the times estimated here are off by a factor of 1.2. float32 without
// TF32, float64 and other GPUs were not timed: their rates are those scaled as data sheets are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace fastrnn::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How products are made of what. kTf32 is float whose products use tensor cores.
enum class Dtype { kFloat, kTf32, kHalf, kBfloat16, kDouble };
constexpr const char* kDtypeNames[] = {"float32", "tf32", "float16", "bfloat16", "float64"};
constexpr int kDtypes = 5;

constexpr int64_t item_size(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat || dtype == Dtype::kTf32 ? 4 : 2;
}

// A block of the stepwise schedule makes kTileRows batch rows x units_of(planes) units of every
// plane. Its warps add up different parts of the same sums: from each stage a warp takes 32 bytes
// of depth.
constexpr int kTileRows = 16;
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStages = 4;  // of the copies from global to shared memory that are under way
// Bytes of depth in a stage, and from row to row there: 16 more, so that eight rows touch all
// banks.
constexpr int kStageDepth = 32 * kWarps;
constexpr int kStagePitch = kStageDepth + 16;

constexpr int units_of(int planes) { return planes == 1 ? 16 : 8; }
constexpr int columns_of(int planes) { return planes * units_of(planes); }
constexpr int stage_bytes(int planes) { return (kTileRows + columns_of(planes)) * kStagePitch; }
// Elements from row to row of the sums: 8 or 24 modulo 32, so that the pairs of a warp touch all
// banks.
constexpr int sums_pitch(int planes) {
  const int columns = columns_of(planes);
  return columns % 16 == 0 ? columns + 8 : columns;
}
// Of a block: the stages, whose place the sums take in the end.
constexpr size_t shared_bytes(int planes, size_t sum_size) {
  const size_t stages = static_cast<size_t>(kStages) * stage_bytes(planes);
  const size_t sums = sum_size * kWarps * kTileRows * sums_pitch(planes);
  return stages > sums ? stages : sums;
}
// What a block can have on any GPU of compute capability 8.0 or above.
constexpr size_t kLeastShared = 99 << 10;
static_assert(shared_bytes(4, 8) <= kLeastShared);

// A product of a step: [N, depth] x [planes * units, depth]^T.
struct ProductSize {
  int64_t planes, units, depth;
};

constexpr int64_t unit_tiles(const ProductSize& p) {
  return ceil_div(p.units, units_of(static_cast<int>(p.planes)));
}
// Blocks of a launch.
constexpr int64_t blocks_of(const ProductSize& p, int64_t batch, int64_t directions) {
  return directions * ceil_div(batch, kTileRows) * unit_tiles(p);
}

// The persistent schedule: one launch for all steps. A group of blocks has up to kGroupRows batch
// rows of a direction, a block `units` units of it, whose weights stay in its registers; so a warp
// has kWeightDepth bytes of the depth of a unit's rows. Blocks hand on the state through the shared
// memory of a cluster, those of kGridUnits through global memory.
constexpr int kGroupRows = 8;
constexpr int kWeightDepth = 256;
constexpr int kMostCluster = 16;
constexpr int kClusterUnits = 32, kGridUnits = 16;

struct Groups {
  int units;
  int64_t blocks, parts, rows;  // of a group, groups of a direction, batch rows of a group
  int depth, pitch;             // bytes of a row that blocks hand on, with zeros at the end; from
                                // row to row in shared memory

  constexpr bool through_memory() const { return units == kGridUnits; }
};

// Warps that share the depth of 16 units.
constexpr int depth_split(int units) { return kWarps * 16 / units; }
// Units of a block that has the whole layer.
constexpr int whole_units(int item_size) { return kWeightDepth / item_size; }
// The largest H of a group whose blocks have so many units each.
constexpr int most_hidden(int units, int item_size) {
  return units == whole_units(item_size) ? units : depth_split(units) * kWeightDepth / item_size;
}
// That depth, of rows of `planes` numbers for each unit: all that the warps which share it have
// registers for, or half of it.
constexpr int exchange_depth(int64_t hidden, int planes, int units, int item_size) {
  const int64_t all = static_cast<int64_t>(depth_split(units)) * kWeightDepth * planes;
  const int64_t used = 16 * ceil_div(hidden * item_size, 16) * planes;
  return static_cast<int>(2 * used <= all ? all / 2 : all);
}
// Bytes from row to row in shared memory: an odd multiple of 64, so that two rows touch all banks.
constexpr int exchange_pitch(int depth) { return depth / 64 % 2 == 0 ? depth + 64 : depth; }
// Numbers of a unit that blocks hand on, in rows of so many numbers each: backward through memory
// the gradients of its gates, else one.
constexpr int handed_planes(int units, int gates, bool backward) {
  return backward && units == kGridUnits ? gates : 1;
}
inline Groups make_groups(int units, int64_t rows, int gates, int64_t hidden, int64_t batch,
                          bool backward, int item_size) {
  const int planes = handed_planes(units, gates, backward);
  const int depth = exchange_depth(hidden, planes, units, item_size);
  return {units, ceil_div(hidden, units), ceil_div(batch, rows), rows,
          depth, exchange_pitch(depth)};
}
// Numbers of the ring in global memory through which they hand it on, if they do.
inline int64_t ring_size(const Groups& g, int gates, int64_t hidden, int64_t directions,
                         bool backward, int item_size) {
  const int64_t row = ceil_div(hidden * item_size, 16) * 16 / item_size;
  return g.through_memory()
             ? directions * g.parts * 2 * kGroupRows * handed_planes(g.units, gates, backward) * row
             : 0;
}
// Shared memory of a block, which begins with the counts of arrivals.
constexpr int kArrivalBytes = 128;
// Blocks that send states, or gradients of gates; `planes` that have sums of their own.
constexpr size_t persistent_state_bytes(const Groups& g, int planes) {
  const int split = depth_split(g.units), sums = planes == 1 ? 1 : 4;
  return static_cast<size_t>(kArrivalBytes + 2 * kGroupRows * g.pitch +
                             (split == 1 ? 0 : split * g.units * kGroupRows * sums * 4));
}
// Blocks of a cluster that send parts of gradients.
constexpr size_t persistent_parts_bytes(const Groups& g, int item_size, int planes) {
  return static_cast<size_t>(kArrivalBytes +
                             2 * kGroupRows * exchange_pitch(planes * g.units * item_size) +
                             2 * g.blocks * g.units * kGroupRows * 4);
}

struct Device {
  int processors;
  int major;  // of the compute capability
};
constexpr int kClusterMajor = 9;  // the least of a GPU that has clusters

// The schedule of a loop.
struct Plan {
  bool library = false;
  Groups groups = {};  // of the persistent schedule, if there are any blocks
};

// Per nanosecond.
struct Rates {
  double block;    // bytes that a block copies and multiplies, whatever others do
  double flops;    // of a processor, of products without tensor cores; 0: no limit
  double library;  // FLOP of a processor, of the library's products
};

constexpr Rates rates(Dtype dtype, const Device& device) {
  const bool hopper = device.major >= 9;
  switch (dtype) {
    case Dtype::kFloat:
      return {38, hopper ? 100. : 70., hopper ? 200. : 80.};
    case Dtype::kTf32:
      return {38, 0, hopper ? 850. : 400.};
    case Dtype::kDouble:
      return {38, hopper ? 50. : 35., hopper ? 200. : 80.};
    default:
      return {38, 0, hopper ? 2000. : 900.};
  }
}

// Nanoseconds.
constexpr double kLaunch = 850;         // from launch to launch, in a graph
constexpr double kRound = 700;          // of a block, whatever the depth
constexpr double kLibrary = 5850;       // of a product of the library, and of the cell after
constexpr double kLibraryDepth = 0.45;  // of each byte of depth in it
constexpr double kProcessorBytes = 53;  // of the second-level cache, per nanosecond

// Nanoseconds of a step's product and cell in one launch. Blocks run in rounds of two on
// each processor. What they read comes from the second-level cache, which all of them share.
inline double stepwise_time(const ProductSize& p, int64_t batch, int64_t directions, Dtype dtype,
                            const Device& device) {
  const Rates r = rates(dtype, device);
  const double processors = std::max(device.processors, 1);
  const double blocks = static_cast<double>(blocks_of(p, batch, directions));
  const double rounds = std::ceil(blocks / (2 * processors));
  const int columns = columns_of(static_cast<int>(p.planes));
  const double rows = static_cast<double>(std::min<int64_t>(kTileRows, batch));
  const double depth = static_cast<double>(p.depth);
  const double bytes = (rows + columns) * depth * static_cast<double>(item_size(dtype));
  double round = kRound + bytes / r.block;
  if (r.flops != 0) round = std::max(round, 4. * kTileRows * columns * depth / r.flops);
  return kLaunch + rounds * round + blocks * bytes / (processors * kProcessorBytes);
}

// Nanoseconds of a product by the library, whose tiles have 64 rows or more, and of the cell after,
// which reads the sums from memory.
inline double library_time(const ProductSize& p, int64_t batch, int64_t directions, Dtype dtype,
                           const Device& device) {
  const double processors = std::max(device.processors, 1);
  const double columns = static_cast<double>(directions * p.planes * p.units);
  const double rows = static_cast<double>(64 * ceil_div(batch, 64));
  const double depth = static_cast<double>(p.depth);
  const double sums = 2 * 4 * static_cast<double>(batch) * columns;  // bytes written and read
  const double flops = 2 * rows * columns * depth;
  return kLibrary + kLibraryDepth * depth * static_cast<double>(item_size(dtype)) +
         (flops / rates(dtype, device).library + sums / kProcessorBytes) / processors;
}

// Nanoseconds of a step of the persistent schedule, from the floors of its parts, and what kernels
// take beyond a floor. None of it was measured as a whole: no GPU has run these kernels.
constexpr double kPersistentCell = 160;                  // the cells, and barriers of a block
constexpr double kPersistentProduct = 200;               // by all the weights that registers hold
constexpr double kClusterHop = 190, kClusterBytes = 26;  // to another block; per nanosecond
constexpr double kMemoryHop = 680, kMemoryBytes = 69;
constexpr double kBeyondFloor = 1.3;

inline double persistent_time(const Groups& g, int64_t hidden, bool backward, int item_size) {
  const double depth = static_cast<double>(depth_split(g.units) * kWeightDepth) / item_size;
  const double size = static_cast<double>(hidden);
  const double sent = g.through_memory() ? g.depth : size * (backward ? 4 : item_size);
  double time = kPersistentCell + kPersistentProduct * std::max(0.25, std::min(1., size / depth));
  if (g.blocks > 1) {
    const double bytes = static_cast<double>(g.rows) * sent;
    time += g.through_memory() ? kMemoryHop + bytes / kMemoryBytes
                               : kClusterHop + bytes / kClusterBytes;
  }
  return kBeyondFloor * time;
}

// Nanoseconds that the product of the input, of all steps at once, takes of a step. The times of
// the other schedules were fitted to rows that have it, with an input as wide as h; so the rate of
// the library is for two products.
inline double input_time(int gates, int64_t hidden, int64_t batch, int64_t directions, Dtype dtype,
                         const Device& device) {
  const double flops = static_cast<double>(directions * batch * gates) *
                       static_cast<double>(hidden) * static_cast<double>(hidden);
  return flops / rates(dtype, device).library / std::max(device.processors, 1);
}

// A loop without a projection, as the persistent schedule sees it.
struct Whole {
  int gates;
  int64_t hidden, batch, directions;
  Dtype dtype;
  bool backward;

  int item() const { return static_cast<int>(item_size(dtype)); }
  Groups of(int units, int64_t rows) const {
    return make_groups(units, rows, gates, hidden, batch, backward, item());
  }
  // Nanoseconds of a step, of which the device runs so many groups at the same time.
  double time(const Groups& g, int64_t at_once, const Device& device) const {
    const int64_t rounds = ceil_div(g.parts * directions, at_once);
    return static_cast<double>(rounds) * persistent_time(g, hidden, backward, item()) +
           input_time(gates, hidden, batch, directions, dtype, device);
  }
};

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// The groups of a loop in the persistent schedule whose step takes less than `limit` nanoseconds,
// and least; or one with 0 blocks where there are none: they hold no layer of that size, nothing
// but tensor cores' products. at_once(groups) is how many groups of so many blocks the device runs
// at the same time; 0 where it cannot. Groups of a cluster never wait for each other, so they may
// also follow each other; those that go through memory must all run.
template <class AtOnce>
Groups choose_groups(const Whole& loop, const Device& device, double limit, AtOnce at_once) {
  Groups best{};
  if (loop.dtype == Dtype::kFloat || loop.dtype == Dtype::kDouble) return best;
  if (loop.batch == 0 || loop.hidden == 0 || device.major < kClusterMajor) return best;
  for (const int units : {whole_units(loop.item()), kClusterUnits, kGridUnits}) {
    Groups g = loop.of(units, kGroupRows);
    if (loop.hidden > most_hidden(units, loop.item())) continue;
    if (!g.through_memory() && g.blocks > kMostCluster) continue;
    const int64_t most = at_once(g);
    if (most < loop.directions) continue;
    g = loop.of(units, std::min<int64_t>(ceil_div(loop.batch, most / loop.directions), kGroupRows));
    if (g.through_memory() && g.parts * loop.directions > most) continue;
    if (const double time = loop.time(g, most, device); time < limit) {
      best = g;
      limit = time;
    }
  }
  return best;
}

// Nanoseconds of a step by the two schedules that make these products one by one; no launch has the
// blocks where it is infinite.
struct StepTimes {
  double library = 0, stepwise = 0;
};
inline StepTimes step_times(const ProductSize* products, int count, int64_t batch,
                            int64_t directions, Dtype dtype, const Device& device) {
  StepTimes times;
  for (int i = 0; i < count; ++i) {
    times.library += library_time(products[i], batch, directions, dtype, device);
    times.stepwise += blocks_of(products[i], batch, directions) > INT32_MAX
                          ? kNoLimit
                          : stepwise_time(products[i], batch, directions, dtype, device);
  }
  return times;
}

// The product of a step of a loop that has one.
inline ProductSize product_of(const Whole& loop) {
  return loop.backward ? ProductSize{1, loop.hidden, loop.gates * loop.hidden}
                       : ProductSize{loop.gates, loop.hidden, loop.hidden};
}

// What takes least time of all, of a loop without a projection.
template <class AtOnce>
Plan choose_of_all(const Whole& loop, const Device& device, AtOnce at_once) {
  const ProductSize product = product_of(loop);
  const StepTimes t = step_times(&product, 1, loop.batch, loop.directions, loop.dtype, device);
  return {t.library <= t.stepwise,
          choose_groups(loop, device, std::min(t.library, t.stepwise), at_once)};
}

}  // namespace fastrnn::cuda
