// Included beside table_bf16.h where there are tiles: arrays of the kernels of float whose products
// are of parts, one column per cell.
#include "cpu/kernels.h"

namespace FASTRNN_NAMESPACE {

inline bool finite_or_none(const float* numbers, int64_t count) {
  return numbers == nullptr || finite<float>(numbers, count);
}

template <class Cell>
bool suits_parts(const Sizes& s) {
  return fastrnn::cpu::in_parts({s.batch, Cell::kGates * s.hidden, s.state, sizeof(float)});
}

// As layer.h says. Whatever is infinite or NaN in a product makes a result so: a state that is NaN
// stays NaN until it is cut off from the results, and is an output before.
template <class Cell>
bool forward_in_parts(const fastrnn::Forward<float>& f, const Parallel& parallel) {
  if (!suits_parts<Cell>(f.size)) return false;
  forward<Cell, float>(f, parallel);
  return finite<float>(f.y, f.size.rows * f.size.directions * f.size.state);
}
template <class Cell>
bool backward_in_parts(const fastrnn::Backward<float>& b, const Parallel& parallel) {
  const Sizes& s = b.forward.size;
  if (!suits_parts<Cell>(s)) return false;
  backward<Cell, float>(b, parallel);
  const int64_t units = s.directions * s.batch, sums = b.of_rows ? s.batch : 1;
  bool all = finite_or_none(b.dx, s.rows * s.input) && finite_or_none(b.dh0, units * s.state) &&
             finite_or_none(b.dc0, units * s.cell);
  for (int64_t d = 0; d < s.directions && b.need_weights; ++d) {
    const auto& w = b.dweights[d];
    const int64_t gates = sums * Cell::kGates * s.hidden;
    all = all && finite<float>(w.w_ih, gates * s.input) && finite<float>(w.w_hh, gates * s.state) &&
          finite_or_none(w.w_hr, sums * s.state * s.hidden);
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
