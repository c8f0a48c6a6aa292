// What a launch looks like from outside.
#pragma once

#include <cstddef>

namespace fastrnn::cuda {

struct LaunchShape {
  int blocks;                   // a multiple of `cluster`
  int threads;                  // of a block, a multiple of 32
  size_t shared = 0;            // bytes of dynamic shared memory of a block
  int cluster = 1;              // blocks of a cluster, up to 16; more than 1 needs sm_90
  bool overlaps = false;        // may begin before the launch before it has ended, see
                                // previous_grid_wait; without effect below sm_90
  bool together = false;        // all blocks run at the same time, as grid_barrier needs
  const char* name = "kernel";  // for messages
};

}  // namespace fastrnn::cuda
