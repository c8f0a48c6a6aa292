// The kernels of an instruction set, to be instantiated for each cell and type in memory.
#pragma once

#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/forward.h"
#include "cpu/few_steps.h"
#include "cpu/backward.h"
#include "cpu/program_step.h"
#include "cpu/small_stream.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class T>
void forward(const fastrnn::Forward<T>& arguments, const Parallel& parallel) {
  if constexpr (!kInParts<Operand<T>>)
    if (FewSteps<Cell, T>::suits(arguments.size)) return FewSteps<Cell, T>(arguments, parallel)();
  ForwardPass<ForwardStep<Cell, T>, T>(arguments, parallel)();
}
template <class Cell, class T>
void backward(const fastrnn::Backward<T>& arguments, const Parallel& parallel) {
  BackwardPass<BackwardStep<Cell, T>, T>(arguments, parallel)();
}

template <class Step, class T>
struct Steps final : fastrnn::Stream {
  const fastrnn::Forward<T>& all;
  fastrnn::Forward<T> one;
  ForwardPass<Step, T> pass;

  explicit Steps(const fastrnn::Forward<T>& arguments)
      : all(arguments), one(arguments), pass(one, Parallel{1, nullptr}) {
    pass.pack();
  }
  void steps(int64_t count) override {
    for (int64_t t = 0; t < count; ++t) {
      one.x = all.x + t * all.size.batch * all.size.input;
      one.y = all.y + t * all.size.batch * all.size.state;
      pass.over_time();
    }
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
