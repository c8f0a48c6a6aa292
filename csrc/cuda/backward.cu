#include "cuda/launch.cuh"

namespace fastrnn::cuda {

void launch_step(const Loop& loop, const Backward& backward, int64_t i, Part part, bool overlaps,
                 void* stream) {
  const StepLaunch<Backward> step{backward, i, overlaps, stream};
  const Plan plan = loop.plan;
  with_operand(loop.dtype, [&]<Dtype kDtype, class Operand>() {
    using T = typename Operand::Stored;
    if (part == Part::kState) {
      const int64_t units = backward.size.state;
      if (plan.library)
        return step.pointwise(backward_state_pointwise<T>, "backward_state_pointwise", units);
      return with_tile<kDtype>(plan.tile, [&]<int kTile>() {
        step.template tiles<Operand, kTile, 1>(backward_state<Operand, kTile>, "backward_state",
                                               units, backward.size.planes * backward.size.hidden);
      });
    }
    with_cell(loop.cell, [&]<class Cell>() {
      const int64_t units = backward.size.hidden;
      if (plan.library)
        return step.pointwise(backward_cell_pointwise<Cell, T>, "backward_cell_pointwise", units);
      with_tile<kDtype>(plan.tile, [&]<int kTile>() {
        const int64_t depth = backward.projected ? backward.size.state : Cell::kGates * units;
        step.template tiles<Operand, kTile, 1>(backward_cell<Cell, Operand, kTile>, "backward_cell",
                                               units, depth);
      });
    });
  });
}

}  // namespace fastrnn::cuda
