// Included at the end of an isa_*.cpp: the table of its kernels, one column per cell.
#include "cpu/vec.h"
//
#include "cells.h"
#include "cpu/forward.h"
#include "cpu/backward.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class T>
void forward(const fastrnn::Forward<T>& arguments, const Parallel& parallel) {
  ForwardPass<Cell, T>(arguments, parallel)();
}
template <class Cell, class T>
void backward(const fastrnn::Backward<T>& arguments, const Parallel& parallel) {
  BackwardPass<Cell, T>(arguments, parallel)();
}

static const fastrnn::Kernels kTable = {
    FASTRNN_ISA_NAME,
#define X(Cell, name) forward<Cell, float>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) forward<Cell, double>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) backward<Cell, float>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) backward<Cell, double>,
    {FASTRNN_CELLS(X)},
#undef X
};

}  // namespace FASTRNN_NAMESPACE
