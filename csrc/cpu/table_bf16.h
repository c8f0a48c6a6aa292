// Included at the end of an isa_*.cpp that has only kernels of Bf16 of its own: arrays of them, one
// column per cell, for `with_bf16`.
#include "cpu/kernels.h"

namespace FASTRNN_NAMESPACE {

#define X(Cell, name) forward<Cell, Bf16>,
static constexpr fastrnn::ForwardKernel<Bf16>* kForward[] = {FASTRNN_CELLS(X)
                                                                 program_forward<Bf16>};
#undef X
#define X(Cell, name) backward<Cell, Bf16>,
static constexpr fastrnn::BackwardKernel<Bf16>* kBackward[] = {FASTRNN_CELLS(X)
                                                                   program_backward<Bf16>};
#undef X

}  // namespace FASTRNN_NAMESPACE
