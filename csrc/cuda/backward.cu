#include "cuda/launch.cuh"

namespace fastrnn::cuda {

void launch_step(const Loop& loop, const Backward& backward, int64_t i, Part part, bool overlaps,
                 void* stream) {
  const StepLaunch<Backward> step{backward, i, overlaps, stream};
  with_operand(loop.dtype, [&]<class Operand>() {
    using T = typename Operand::Stored;
    if (part == Part::kState) {
      const int64_t units = backward.size.state;
      if (loop.library)
        return step.pointwise(backward_state_pointwise<T>, "backward_state_pointwise", units);
      return step.template tiles<Operand, 1>(backward_state<Operand>, "backward_state", units);
    }
    with_cell(loop.cell, [&]<class Cell>() {
      const int64_t units = backward.size.hidden;
      if (loop.library)
        return step.pointwise(backward_cell_pointwise<Cell, T>, "backward_cell_pointwise", units);
      step.template tiles<Operand, 1>(backward_cell<Cell, Operand>, "backward_cell", units);
    });
  });
}

}  // namespace fastrnn::cuda
