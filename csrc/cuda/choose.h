// Which schedule runs a loop over time, in which tiles: a pure function of sizes, no CUDA.
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

namespace fastrnn::cuda {

// How products are made of what. kTf32 is float whose products use tensor cores.
enum class Dtype { kFloat, kTf32, kHalf, kBfloat16, kDouble };
constexpr const char* kDtypeNames[] = {"float32", "tf32", "float16", "bfloat16", "float64"};
constexpr int kDtypes = 5;

constexpr int64_t item_size(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat || dtype == Dtype::kTf32 ? 4 : 2;
}

// A block of the stepwise schedule: batch rows x units of every plane, and how its warps divide
// them. Warps along the depth add up different parts of the same sums.
struct Tile {
  int rows;
  int units;   // of each plane
  int single;  // where there is one plane
  int warp_rows, warp_columns, warp_depth;
  int steps;   // of 32 bytes of depth, that a warp takes from each stage
  int stages;  // of the copies from global to shared memory that are under way
  bool holds;  // all of its weights: what is copied in stages are the rows alone
};

// 0 streams both factors, with as many blocks as there are processors. 1 and 2 have their weights
// before the step before has ended, and wait for the rows alone: few rows, and many.
constexpr Tile kTiles[] = {{16, 8, 16, 1, 1, 8, 1, 4, false},
                           {16, 8, 16, 1, 1, 8, 2, 3, true},
                           {64, 8, 16, 4, 1, 2, 4, 3, true}};
constexpr int kTileCount = 3;
// `choose` takes 0 only: the others are tested, but were never timed on a GPU.

constexpr int units_of(const Tile& tile, int planes) {
  return planes == 1 ? tile.single : tile.units;
}
constexpr int columns_of(const Tile& tile, int planes) { return planes * units_of(tile, planes); }
constexpr int threads_of(const Tile& tile) {
  return 32 * tile.warp_rows * tile.warp_columns * tile.warp_depth;
}
// Bytes of depth in a stage, and from row to row there: 16 more, so that eight rows touch all
// banks.
constexpr int depth_of(const Tile& tile) { return 32 * tile.warp_depth * tile.steps; }
constexpr int stage_pitch(const Tile& tile) { return depth_of(tile) + 16; }
constexpr int stage_bytes(const Tile& tile, int planes) {
  return (tile.rows + (tile.holds ? 0 : columns_of(tile, planes))) * stage_pitch(tile);
}
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Bytes of the weights that a block holds of `depth` bytes, which lie as in stages.
constexpr size_t held_bytes(const Tile& tile, int planes, int64_t depth) {
  return tile.holds ? static_cast<size_t>(ceil_div(depth, depth_of(tile))) *
                          columns_of(tile, planes) * stage_pitch(tile)
                    : 0;
}
// Elements from row to row of the sums: 8 or 24 modulo 32, so that the pairs of a warp touch all
// banks.
constexpr int sums_pitch(const Tile& tile, int planes) {
  const int columns = columns_of(tile, planes);
  return columns % 16 == 0 ? columns + 8 : columns;
}
// Of a block, for `depth` bytes: the stages and what it holds, whose place the sums take in the
// end.
constexpr size_t shared_bytes(const Tile& tile, int planes, size_t sum_size, int64_t depth) {
  const size_t stages = static_cast<size_t>(tile.stages) * stage_bytes(tile, planes) +
                        held_bytes(tile, planes, depth);
  const size_t sums = sum_size * tile.warp_depth * tile.rows * sums_pitch(tile, planes);
  return stages > sums ? stages : sums;
}
// What a block can have on any GPU of compute capability 8.0 or above.
constexpr size_t kLeastShared = 99 << 10;
static_assert(shared_bytes(kTiles[0], 4, 8, 0) <= kLeastShared);

// Without tensor cores only the first.
constexpr bool has_tile(Dtype dtype, int tile) {
  return tile == 0 || (dtype != Dtype::kFloat && dtype != Dtype::kDouble);
}

// A product of a step: [N, depth] x [planes * units, depth]^T.
struct ProductSize {
  int64_t planes, units, depth;
};

constexpr int64_t unit_tiles(const Tile& tile, const ProductSize& p) {
  return ceil_div(p.units, units_of(tile, static_cast<int>(p.planes)));
}
// Blocks of a launch.
constexpr int64_t blocks_of(const Tile& tile, const ProductSize& p, int64_t batch,
                            int64_t directions) {
  return directions * ceil_div(batch, tile.rows) * unit_tiles(tile, p);
}

struct Device {
  int processors;
  int major;  // of the compute capability
};

struct Plan {
  bool library;  // products by the library, one launch for the cell; else in one launch
  int tile;      // index into kTiles
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

// Nanoseconds of a step's product and cell in one launch of tile 0. Blocks run in rounds of two on
// each processor. What they read comes from the second-level cache, which all of them share.
inline double stepwise_time(const ProductSize& p, int64_t batch, int64_t directions, Dtype dtype,
                            const Device& device) {
  const Tile& t = kTiles[0];
  const Rates r = rates(dtype, device);
  const double processors = std::max(device.processors, 1);
  const double blocks = static_cast<double>(blocks_of(t, p, batch, directions));
  const double rounds = std::ceil(blocks / (2 * processors));
  const int columns = columns_of(t, static_cast<int>(p.planes));
  const double rows = static_cast<double>(std::min<int64_t>(t.rows, batch));
  const double depth = static_cast<double>(p.depth);
  const double bytes = (rows + columns) * depth * static_cast<double>(item_size(dtype));
  double round = kRound + bytes / r.block;
  if (r.flops != 0) round = std::max(round, 4. * t.rows * columns * depth / r.flops);
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

// The plan for a loop whose steps make these products: the least time of those whose grids a launch
// can have.
inline Plan choose(const ProductSize* products, int count, int64_t batch, int64_t directions,
                   Dtype dtype, const Device& device) {
  double library = 0, stepwise = 0;
  bool fits = true;
  for (int i = 0; i < count; ++i) {
    library += library_time(products[i], batch, directions, dtype, device);
    stepwise += stepwise_time(products[i], batch, directions, dtype, device);
    fits = fits && blocks_of(kTiles[0], products[i], batch, directions) <= INT32_MAX;
  }
  return {!fits || library <= stepwise, 0};
}

}  // namespace fastrnn::cuda
