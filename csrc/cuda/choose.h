// Which schedule runs a loop over time, in which tiles: a pure function of sizes, no CUDA.
//
// Its rates are rounded from data sheets; nothing here was timed on a GPU yet.
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
};

// Few rows: as many blocks as there are processors, so that all of them stream the weights.
// Many rows: blocks that read both factors about as often.
constexpr Tile kTiles[] = {{16, 8, 16, 1, 1, 8, 1, 4}, {64, 16, 16, 2, 2, 2, 2, 4}};
constexpr int kTileCount = 2;

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
  return (tile.rows + columns_of(tile, planes)) * stage_pitch(tile);
}
// Elements from row to row of the sums: 8 or 24 modulo 32, so that the pairs of a warp touch all
// banks.
constexpr int sums_pitch(const Tile& tile, int planes) {
  const int columns = columns_of(tile, planes);
  return columns % 16 == 0 ? columns + 8 : columns;
}
// Of a block: the stages, whose place the sums take in the end.
constexpr size_t shared_bytes(const Tile& tile, int planes, size_t sum_size) {
  const size_t stages = static_cast<size_t>(tile.stages) * stage_bytes(tile, planes);
  const size_t sums = sum_size * tile.warp_depth * tile.rows * sums_pitch(tile, planes);
  return stages > sums ? stages : sums;
}
// 99 KiB is the least that a block can have on any GPU of compute capability 8.0 or above.
static_assert(shared_bytes(kTiles[0], 4, 8) <= 99 << 10);
static_assert(shared_bytes(kTiles[1], 4, 4) <= 99 << 10);

// Without tensor cores only few rows: for many the library is better in any case.
constexpr bool has_tile(Dtype dtype, int tile) {
  return tile == 0 || (dtype != Dtype::kFloat && dtype != Dtype::kDouble);
}

// A product of a step: [N, depth] x [planes * units, depth]^T.
struct ProductSize {
  int64_t planes, units, depth;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
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

// Per processor and nanosecond.
struct Rates {
  double bytes;    // from the second-level cache, all processors reading
  double flops;    // of the step kernels' products
  double library;  // of the library's products
};

constexpr Rates rates(Dtype dtype, const Device& device) {
  const bool hopper = device.major >= 9;
  const double bytes = hopper ? 42 : 35;
  switch (dtype) {
    case Dtype::kFloat:
      return {bytes, hopper ? 100. : 70., hopper ? 340. : 130.};
    case Dtype::kTf32:
      return {bytes, hopper ? 1100. : 850., hopper ? 2200. : 1000.};
    case Dtype::kDouble:
      return {bytes, hopper ? 50. : 35., hopper ? 340. : 140.};
    default:
      return {bytes, hopper ? 2200. : 1700., hopper ? 4500. : 2000.};
  }
}

constexpr double kLaunch = 1300;   // ns from launch to launch, in a graph
constexpr double kLibrary = 2000;  // ns of a product of the library that has next to nothing to do

// Nanoseconds of a step's product and cell in one launch: what is slowest of all blocks together,
// and of the blocks of one processor, which can read twice its share where others read nothing.
inline double stepwise_time(const Tile& tile, const ProductSize& p, int64_t batch,
                            int64_t directions, Dtype dtype, const Device& device) {
  const Rates r = rates(dtype, device);
  const double processors = std::max(device.processors, 1);
  const double blocks = static_cast<double>(blocks_of(tile, p, batch, directions));
  const double waves = std::ceil(blocks / processors);
  const int columns = columns_of(tile, static_cast<int>(p.planes));
  const double rows = static_cast<double>(std::min<int64_t>(tile.rows, batch));
  const double depth = static_cast<double>(p.depth);
  const double bytes = (rows + columns) * depth * static_cast<double>(item_size(dtype));
  const double flops = 2. * tile.rows * columns * depth;
  return kLaunch + std::max({blocks * bytes / (processors * r.bytes), waves * bytes / (2 * r.bytes),
                             waves * flops / r.flops});
}

// Nanoseconds of a product by the library, whose tiles have 64 rows or more, and of the cell after.
inline double library_time(const ProductSize& p, int64_t batch, int64_t directions, Dtype dtype,
                           const Device& device) {
  const Rates r = rates(dtype, device);
  const double columns = static_cast<double>(directions * p.planes * p.units);
  const double rows = static_cast<double>(64 * ceil_div(batch, 64));
  const double depth = static_cast<double>(p.depth);
  const double sums = 2 * 4 * static_cast<double>(batch) * columns;  // written and read
  const double weights = columns * depth * static_cast<double>(item_size(dtype));
  const double flops = 2 * rows * columns * depth;
  return 2 * kLaunch + kLibrary +
         (std::max(flops / r.library, weights / r.bytes) + sums / r.bytes) /
             std::max(device.processors, 1);
}

// The plan for a loop whose steps make these products: the least time of those whose grids a launch
// can have.
inline Plan choose(const ProductSize* products, int count, int64_t batch, int64_t directions,
                   Dtype dtype, const Device& device) {
  Plan best{true, 0};
  double least = 0;
  for (int i = 0; i < count; ++i)
    least += library_time(products[i], batch, directions, dtype, device);
  for (int tile = 0; tile < kTileCount; ++tile) {
    if (!has_tile(dtype, tile)) continue;
    double time = 0;
    bool fits = true;
    for (int i = 0; i < count; ++i) {
      time += stepwise_time(kTiles[tile], products[i], batch, directions, dtype, device);
      fits = fits && blocks_of(kTiles[tile], products[i], batch, directions) <= INT32_MAX;
    }
    if (!fits || time >= least) continue;
    least = time;
    best = {false, tile};
  }
  return best;
}

}  // namespace fastrnn::cuda
