// Included at the end of an isa_*.cpp: the table of its kernels, one column per cell, one for
// programs.
#include "cpu/kernels.h"

namespace FASTRNN_NAMESPACE {

static const fastrnn::Kernels kTable = {
    FASTRNN_ISA_NAME,
#define X(Cell, name) forward<Cell, float>,
    {FASTRNN_CELLS(X) program_forward<float>},
#undef X
#define X(Cell, name) forward<Cell, double>,
    {FASTRNN_CELLS(X) program_forward<double>},
#undef X
#define X(Cell, name) forward<Cell, fastrnn::Bf16>,
    {FASTRNN_CELLS(X) program_forward<fastrnn::Bf16>},
#undef X
#define X(Cell, name) backward<Cell, float>,
    {FASTRNN_CELLS(X) program_backward<float>},
#undef X
#define X(Cell, name) backward<Cell, double>,
    {FASTRNN_CELLS(X) program_backward<double>},
#undef X
#define X(Cell, name) backward<Cell, fastrnn::Bf16>,
    {FASTRNN_CELLS(X) program_backward<fastrnn::Bf16>},
#undef X
#define X(Cell, name) stream<Cell, float>,
    {FASTRNN_CELLS(X) program_stream<float>},
#undef X
#define X(Cell, name) stream<Cell, double>,
    {FASTRNN_CELLS(X) program_stream<double>},
#undef X
#define X(Cell, name) small_stream<Cell>,
    {FASTRNN_CELLS(X) nullptr},
#undef X
#define X(Cell, name) half_step<Cell>,
    {FASTRNN_CELLS(X) nullptr},
#undef X
};

}  // namespace FASTRNN_NAMESPACE
