// From numbers to the persistent kernels.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/persistent_backward.cuh"

namespace fastrnn::cuda {

// f.template operator()<Cell, Operand>() for what tensor cores multiply.
template <class F>
void with_persistent(const Loop& loop, F f) {
  with_cell(loop.cell, [&]<class Cell>() {
    switch (loop.dtype) {
      case Dtype::kTf32:
        return f.template operator()<Cell, Tf32>();
      case Dtype::kHalf:
        return f.template operator()<Cell, Half>();
      case Dtype::kBfloat16:
        return f.template operator()<Cell, Bfloat16>();
      default:
        throw std::invalid_argument("fastrnn: no persistent kernel of this dtype");
    }
  });
}

template <class Steps>
struct PersistentKernel {
  void (*kernel)(Steps, Groups);
  LaunchShape shape;
};

inline LaunchShape persistent_shape(const Groups& g, int64_t directions, size_t shared,
                                    const char* name) {
  LaunchShape shape{grid(g.blocks * g.parts * directions), kThreads, shared, false, name};
  shape.cluster = g.through_memory() ? 0 : static_cast<int>(g.blocks);
  shape.together = g.through_memory();
  return shape;
}

template <class Steps>
int64_t at_once(const PersistentKernel<Steps>& chosen, const Groups& groups) {
  const int64_t most = clusters_at_once(chosen.kernel, chosen.shape);
  return groups.through_memory() ? most / groups.blocks : most;
}

}  // namespace fastrnn::cuda
