// What a launch looks like from outside.
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

}  // namespace fastrnn::cuda
