// The kernels of an instruction set, to be instantiated for each cell and type in memory.
#pragma once

#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/forward.h"
#include "cpu/few_steps.h"
#include "cpu/few_units.h"
#include "cpu/backward.h"
#include "cpu/program_step.h"
#include "cpu/small_stream.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class T>
void forward(const fastrnn::Forward<T>& arguments, const Parallel& parallel) {
  if constexpr (!kConverts<T>)
    if (FewSteps<Cell, T>::suits(arguments.size)) return FewSteps<Cell, T>(arguments, parallel)();
  if constexpr (kMayBeFew<T>)
    if (FewUnits<Cell, T>::suits(arguments))
      return FewUnits<Cell, T>(arguments, parallel).forward();
  ForwardPass<ForwardStep<Cell, T>, T>(arguments, parallel)();
}
template <class Cell>
bool half_step(const fastrnn::Forward<F16>& arguments, const Parallel& parallel) {
  if (!FewSteps<Cell, F16>::suits(arguments.size)) return false;
  FewSteps<Cell, F16>(arguments, parallel)();
  return true;
}
template <class Cell, class T>
void backward(const fastrnn::Backward<T>& arguments, const Parallel& parallel) {
  if constexpr (kMayBeFew<T>)
    if (FewUnits<Cell, T>::suits(arguments))
      return FewUnits<Cell, T>(arguments, parallel).backward();
  BackwardPass<BackwardStep<Cell, T>, T>(arguments, parallel)();
}

// Steps that are given together share the input product, so that W_ih is read once for so many
// rows: two of the highest tiles of AVX-512. The input parts of 16 rows would lie 4 KiB apart.
inline constexpr int64_t kRowsTogether = 12;

template <class Step, class T>
struct Steps final : fastrnn::Stream {
  const fastrnn::Forward<T>& all;
  const int64_t most;  // steps together
  Buffer<int64_t> active, offset;
  fastrnn::Forward<T> some;
  ForwardPass<Step, T> pass;

  explicit Steps(const fastrnn::Forward<T>& arguments)
      : all(arguments),
        most(max(1, kRowsTogether / all.size.batch)),
        active(most),
        offset(most),
        some(together()),
        pass(some, Parallel{1, nullptr}) {
    pass.pack();
  }
  void steps(int64_t count) override {
    for (int64_t t = 0; t < count; t += most) {
      some.size.steps = min(most, count - t);
      some.x = all.x + t * all.size.batch * all.size.input;
      some.y = all.y + t * all.size.batch * all.size.state;
      pass.over_time();
    }
  }

 private:
  fastrnn::Forward<T> together() const {
    const int64_t rows = all.size.batch;
    for (int64_t t = 0; t < most; ++t) {
      active[t] = rows;
      offset[t] = t * rows;
    }
    fastrnn::Forward<T> forward = all;
    forward.size.steps = most;
    forward.size.rows = most * rows;
    forward.size.active = active;
    forward.size.offset = offset;
    return forward;
  }
};
template <class Cell, class T>
fastrnn::Stream* stream(const fastrnn::Forward<T>& arguments) {
  return new Steps<ForwardStep<Cell, T>, T>(arguments);
}

// The same of programs.
template <class T>
void program_forward(const fastrnn::Forward<T>& arguments, const Parallel& parallel) {
  ForwardPass<ProgramStep<T>, T>(arguments, parallel)();
}
template <class T>
void program_backward(const fastrnn::Backward<T>& arguments, const Parallel& parallel) {
  BackwardPass<ProgramDerivative<T>, T>(arguments, parallel)();
}
template <class T>
fastrnn::Stream* program_stream(const fastrnn::Forward<T>& arguments) {
  return new Steps<ProgramStep<T>, T>(arguments);
}

}  // namespace FASTRNN_NAMESPACE
