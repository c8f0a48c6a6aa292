// Included beside table_bf16.h where there are tiles, or where floats are rounded for products:
// arrays of the kernels of float whose products are of parts, one column per cell.
#include "cpu/kernels.h"

namespace FASTRNN_NAMESPACE {

// Not a step of few rows, which reads weights as they lie: to pack them would take longer.
template <class Cell>
bool suits_parts(const fastrnn::Forward<float>& f) {
  using fastrnn::cpu::in_parts, fastrnn::cpu::InParts;
  const Sizes& s = f.size;
  return in_parts({s.batch, Cell::kGates * s.hidden, s.state, sizeof(float)}, s.steps, f.parts,
                  kTiled<Operand<float>>) &&
         (in_parts() == InParts::kAlways || !FewSteps<Cell, float>::suits(s));
}

// As layer.h says. Whatever is infinite or NaN in a product makes a result so: a state that is NaN
// stays NaN until it is cut off from the results, and is an output before.
template <class Cell>
bool forward_in_parts(const fastrnn::Forward<float>& f, const Parallel& parallel) {
  const Sizes& s = f.size;
  if (!suits_parts<Cell>(f)) return false;
  forward<Cell, float>(f, parallel);
  return all_finite<float>(parallel, f.y, s.rows * s.directions * s.state);
}
template <class Cell>
bool backward_in_parts(const fastrnn::Backward<float>& b, const Parallel& parallel) {
  const Sizes& s = b.forward.size;
  if (!suits_parts<Cell>(b.forward)) return false;
  backward<Cell, float>(b, parallel);
  const auto stands = [&](const float* results, int64_t count) {
    return results == nullptr || all_finite<float>(parallel, results, count);
  };
  const int64_t units = s.directions * s.batch, sums = b.of_rows ? s.batch : 1;
  bool all = stands(b.dx, s.rows * s.input) && stands(b.dh0, units * s.state) &&
             stands(b.dc0, units * s.cell);
  for (int64_t d = 0; d < s.directions && b.need_weights; ++d) {
    const auto& w = b.dweights[d];
    const int64_t gates = sums * Cell::kGates * s.hidden;
    all = all && stands(w.w_ih, gates * s.input) && stands(w.w_hh, gates * s.state) &&
          stands(w.w_hr, sums * s.state * s.hidden);
  }
  return all;
}

#define X(Cell, name) forward_in_parts<Cell>,
static constexpr fastrnn::ForwardInParts* kForwardInParts[] = {FASTRNN_CELLS(X)};
#undef X
#define X(Cell, name) backward_in_parts<Cell>,
static constexpr fastrnn::BackwardInParts* kBackwardInParts[] = {FASTRNN_CELLS(X)};
#undef X

}  // namespace FASTRNN_NAMESPACE
