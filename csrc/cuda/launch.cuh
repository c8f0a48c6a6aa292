// From numbers to kernels: the lists that every instantiation comes from.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/loop.h"
#include "cuda/stepwise.cuh"

namespace fastrnn::cuda {

// f.template operator()<Cell>() for the cell at a position in the list.
template <class F>
void with_cell(int cell, F f) {
  int at = 0;
#define FASTRNN_CASE(Cell, name) \
  if (cell == at++) return f.template operator()<Cell>();
  FASTRNN_CELLS(FASTRNN_CASE)
#undef FASTRNN_CASE
  throw std::invalid_argument("fastrnn: no cell " + std::to_string(cell));
}

// f.template operator()<Operand>(), see product.cuh.
template <class F>
void with_operand(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat:
      return f.template operator()<Fma<float>>();
    case Dtype::kTf32:
      return f.template operator()<TensorCore<Tf32>>();
    case Dtype::kHalf:
      return f.template operator()<TensorCore<Half>>();
    case Dtype::kBfloat16:
      return f.template operator()<TensorCore<Bfloat16>>();
    case Dtype::kDouble:
      return f.template operator()<Fma<double>>();
  }
  throw std::invalid_argument("fastrnn: no such dtype");
}

inline int grid(int64_t blocks) {
  if (blocks > INT32_MAX)
    throw std::length_error("fastrnn: a step of " + std::to_string(blocks) + " blocks");
  return static_cast<int>(blocks);
}

// What one launch is given, beside the kernel.
template <class Steps>
struct StepLaunch {
  const Steps& steps;  // Forward or Backward
  int64_t i;
  bool overlaps;
  void* stream;

  // A kernel whose blocks make tiles of a product with `units` columns in each of kPlanes planes.
  template <class Operand, int kPlanes>
  void tiles(void (*kernel)(Steps, int64_t), const char* name, int64_t units) const {
    const Sizes& s = steps.size;
    const int blocks = grid(blocks_of({kPlanes, units, 0}, s.batch, s.directions));
    if (blocks == 0) return;
    const size_t shared = shared_bytes(kPlanes, sizeof(typename Operand::Sum));
    launch(kernel, {blocks, kThreads, shared, overlaps, name}, stream, steps, i);
  }
  void pointwise(void (*kernel)(Steps, int64_t), const char* name, int64_t units) const {
    const Sizes& s = steps.size;
    const int blocks = grid(ceil_div(s.directions * s.batch * units, kPointwiseThreads));
    if (blocks == 0) return;
    launch(kernel, {blocks, kPointwiseThreads, 0, false, name}, stream, steps, i);
  }
};

}  // namespace fastrnn::cuda
