// Included at the end of an isa_*.cpp: the table of its kernels, one column per cell.
#include "cpu/kernels.h"

namespace FASTRNN_NAMESPACE {

static const fastrnn::Kernels kTable = {
    FASTRNN_ISA_NAME,
#define X(Cell, name) forward<Cell, float>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) forward<Cell, double>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) forward<Cell, fastrnn::Bf16>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) backward<Cell, float>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) backward<Cell, double>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) backward<Cell, fastrnn::Bf16>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) stream<Cell, float>,
    {FASTRNN_CELLS(X)},
#undef X
#define X(Cell, name) stream<Cell, double>,
    {FASTRNN_CELLS(X)},
#undef X
};

}  // namespace FASTRNN_NAMESPACE
