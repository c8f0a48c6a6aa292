// What the codes of a program are given: how many planes, and where its parameters lie.
#pragma once

#include "cpu/interpreter.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN Kind kind_of(const fastrnn::Program& program) {
  const fastrnn::CellInfo& c = program.info;
  return {c.gates, c.hidden_gates - program.gates_w, c.saved, c.own, c.split, program.gates_w};
}
// Planes that a code is given; the first one of two has none of a second product.
FASTRNN_FN int64_t forward_inputs(const fastrnn::CellInfo& c) {
  return (c.split ? c.gates : 0) + c.hidden_gates + 1 + c.own + c.params;
}
FASTRNN_FN int64_t backward_inputs(const fastrnn::CellInfo& c) {
  return c.saved + 3 * (1 + c.own) + c.params;
}

// The parameters of one direction, as planes.
template <class Stored>
class Parameters {
  using T = Compute<Stored>;
  using L = Lies<T>;
  const fastrnn::Forward<Stored>& f_;
  const int64_t d_, H_, ld_;
  const int count_;
  Buffer<T> units_;     // [those with a number for each unit, ld]
  Buffer<void*> rows_;  // [parameters, rows of a step]
  const int64_t most_;

 public:
  Parameters(const fastrnn::Forward<Stored>& f, int64_t d, int64_t ld)
      : f_(f),
        d_(d),
        H_(f.size.hidden),
        ld_(ld),
        count_(static_cast<int>(f.program->info.params)),
        units_(count_ * ld),
        rows_(f.size.place ? count_ * f.size.batch : 0),
        most_(f.size.batch) {
    if (count_ > 0) memset(units_, 0, count_ * ld * sizeof(T));
    for (int i = 0; i < count_; ++i)
      if (f.forms[i] == fastrnn::Form::kUnit) copy(units_ + i * ld, f.weights[d].params[i], H_);
  }

  // Where they lie for `rows` rows of a step, from `first` in the order of time on.
  void place(int64_t first, int64_t rows, L* lies) {
    constexpr bool kNarrow = !std::is_same_v<Stored, T>;
    for (int i = 0; i < count_; ++i) {
      if (f_.forms[i] == fastrnn::Form::kUnit) {
        lies[i] = {units_ + i * ld_, 0, kLanes<T>, L::kPadded, nullptr};
        continue;
      }
      const bool each = f_.forms[i] == fastrnn::Form::kEach;
      const int64_t width = each ? H_ : 1;
      auto* const data = const_cast<Stored*>(f_.weights[d_].params[i]);
      const auto kind =
          each ? (kNarrow ? L::kNarrow : L::kExact) : (kNarrow ? L::kNarrowSplat : L::kSplat);
      void** const begin = f_.size.place ? rows_ + i * most_ : nullptr;
      for (int64_t n = 0; n < rows && f_.size.place; ++n)
        begin[n] = data + f_.size.place[first + n] * width;
      lies[i] = {data + first * width, width, kLanes<T>, kind, f_.size.place ? begin : nullptr};
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
