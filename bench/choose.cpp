// csrc/cuda/choose.h for Python, see bench/choose.py.
#include "cuda/choose.h"

using namespace fastrnn::cuda;

extern "C" {

// Nanoseconds of a step by the library and by the step kernels. Products are three numbers each.
void step_times_of(const int64_t* products, int count, int64_t batch, int64_t directions, int dtype,
                   int processors, int major, double* times) {
  ProductSize sizes[2];
  for (int k = 0; k < count; ++k)
    sizes[k] = {products[3 * k], products[3 * k + 1], products[3 * k + 2]};
  const StepTimes found =
      step_times(sizes, count, batch, directions, static_cast<Dtype>(dtype), {processors, major});
  times[0] = found.library;
  times[1] = found.stepwise;
}

// What the step kernels make of a product: batch rows and units of a block, blocks for the units,
// threads, blocks, bytes of shared memory. `wide`: of float64.
void tiles_of(const int64_t* product, int64_t batch, int64_t directions, int wide, int64_t* facts) {
  const ProductSize size{product[0], product[1], product[2]};
  const int planes = static_cast<int>(size.planes);
  facts[0] = kTileRows;
  facts[1] = units_of(planes);
  facts[2] = unit_tiles(size);
  facts[3] = kThreads;
  facts[4] = blocks_of(size, batch, directions);
  facts[5] = static_cast<int64_t>(shared_bytes(planes, wide != 0 ? sizeof(double) : sizeof(float)));
}

// What a loop without a projection is given: whether that is the library, then units and blocks of
// a group, groups of a direction and rows of a group, or zeros; the same of the best groups if
// `alone`, whatever else there is. In `time` the nanoseconds of a step by the groups, and of those
// the product of the input. at_once(units, blocks) is how many groups run at the same time.
void plan_of(int gates, int64_t hidden, int64_t batch, int64_t directions, int dtype, int backward,
             int processors, int major, int alone, int64_t (*at_once)(int64_t, int64_t),
             int64_t* plan, double* time) {
  const Whole loop{gates, hidden, batch, directions, static_cast<Dtype>(dtype), backward != 0};
  const Device device{processors, major};
  const auto most = [at_once](const Groups& g) { return at_once(g.units, g.blocks); };
  const Plan best = alone != 0 ? Plan{false, choose_groups(loop, device, kNoLimit, most)}
                               : choose_of_all(loop, device, most);
  const Groups& g = best.groups;
  plan[0] = best.library;
  plan[1] = g.units;
  plan[2] = g.blocks;
  plan[3] = g.parts;
  plan[4] = g.rows;
  time[0] = g.blocks > 0 ? loop.time(g, most(g), device) : 0;
  time[1] = input_time(gates, hidden, batch, directions, loop.dtype, device);
}
}
