// What a launch looks like from outside, and what it needs.
#pragma once

#include <cstddef>

namespace fastrnn::cuda {

struct LaunchShape {
  int blocks;
  int threads;                  // of a block, a multiple of 32
  size_t shared = 0;            // bytes of dynamic shared memory of a block
  bool overlaps = false;        // may begin before the launch before it has ended, see
                                // previous_grid_wait; without effect below sm_90
  const char* name = "kernel";  // for messages
  int cluster = 0;              // blocks of a cluster, a divisor of `blocks`; 0: no clusters
  bool together = false;        // refused unless all blocks run at the same time
};

// Of CUDA, 1000 times the major one and 10 times the minor.
struct Versions {
  int built;   // that of the runtime in this build
  int driver;  // the latest that the driver serves; 0 without one
};

}  // namespace fastrnn::cuda
