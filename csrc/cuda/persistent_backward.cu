#include "cuda/persistent_launch.cuh"

namespace fastrnn::cuda {
namespace {

PersistentKernel<Backward> backward_kernel(const Loop& loop, int64_t directions,
                                           const Groups& groups) {
  PersistentKernel<Backward> chosen{};
  with_persistent(loop, [&]<class Cell, class Operand>() {
    constexpr int kItem = sizeof(typename StoredType<Operand>::type);
    if (groups.through_memory())
      chosen.kernel = persistent_backward_through_memory<Cell, Operand>;
    else if (groups.units == whole_units(kItem))
      chosen.kernel = persistent_backward<Cell, Operand, whole_units(kItem)>;
    else
      chosen.kernel = persistent_backward<Cell, Operand, kClusterUnits>;
    const size_t shared = groups.through_memory()
                              ? persistent_state_bytes(groups, 1)
                              : persistent_parts_bytes(groups, kItem, Cell::kGates);
    chosen.shape = persistent_shape(groups, directions, shared, "persistent_backward");
  });
  return chosen;
}

}  // namespace

void launch_all(const Loop& loop, const Backward& backward, const Groups& groups, void* stream) {
  const Sizes& s = backward.size;
  const auto chosen = backward_kernel(loop, s.directions, groups);
  launch(chosen.kernel, chosen.shape, stream, backward, groups);
}

int64_t backward_at_once(const Loop& loop, const Groups& groups) {
  Groups one = groups;
  one.parts = 1;
  return at_once(backward_kernel(loop, 1, one), one);
}

}  // namespace fastrnn::cuda
