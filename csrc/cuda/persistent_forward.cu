#include "cuda/persistent_launch.cuh"

namespace fastrnn::cuda {
namespace {

PersistentKernel<Forward> forward_kernel(const Loop& loop, int64_t directions,
                                         const Groups& groups) {
  PersistentKernel<Forward> chosen{};
  with_persistent(loop, [&]<class Cell, class Operand>() {
    constexpr int kItem = sizeof(typename StoredType<Operand>::type);
    if (groups.through_memory())
      chosen.kernel = persistent_forward<Cell, Operand, kGridUnits, true>;
    else if (groups.units == whole_units(kItem))
      chosen.kernel = persistent_forward<Cell, Operand, whole_units(kItem), false>;
    else
      chosen.kernel = persistent_forward<Cell, Operand, kClusterUnits, false>;
    const size_t shared = persistent_state_bytes(groups, Cell::kGates);
    chosen.shape = persistent_shape(groups, directions, shared, "persistent_forward");
  });
  return chosen;
}

}  // namespace

void launch_all(const Loop& loop, const Forward& forward, const Groups& groups, void* stream) {
  const Sizes& s = forward.size;
  const auto chosen = forward_kernel(loop, s.directions, groups);
  launch(chosen.kernel, chosen.shape, stream, forward, groups);
}

int64_t forward_at_once(const Loop& loop, const Groups& groups) {
  Groups one = groups;
  one.parts = 1;
  return at_once(forward_kernel(loop, 1, one), one);
}

}  // namespace fastrnn::cuda
