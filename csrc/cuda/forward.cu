#include "cuda/launch.cuh"

namespace fastrnn::cuda {

const char* current_misfit() {
  return misfit(reinterpret_cast<const void*>(forward_state_pointwise<float>));
}

void launch_step(const Loop& loop, const Forward& forward, int64_t i, Part part, bool overlaps,
                 void* stream) {
  const StepLaunch<Forward> step{forward, i, overlaps, stream};
  with_operand(loop.dtype, [&]<class Operand>() {
    using T = typename Operand::Stored;
    if (part == Part::kState) {
      const int64_t units = forward.size.state;
      if (loop.library)
        return step.pointwise(forward_state_pointwise<T>, "forward_state_pointwise", units);
      return step.template tiles<Operand, 1>(forward_state<Operand>, "forward_state", units);
    }
    with_cell(loop.cell, [&]<class Cell>() {
      const int64_t units = forward.size.hidden;
      if (loop.library)
        return step.pointwise(forward_cell_pointwise<Cell, T>, "forward_cell_pointwise", units);
      step.template tiles<Operand, Cell::kGates>(forward_cell<Cell, Operand>, "forward_cell",
                                                 units);
    });
  });
}

}  // namespace fastrnn::cuda
