// Included at the end of an isa_*.cpp that has only streams of small weights of its own: an array
// of them, one column per cell, for `with_small_streams`, and one of those on tiles.
#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/small_stream.h"

namespace FASTRNN_NAMESPACE {

#define X(Cell, name) small_stream<Cell>,
static constexpr fastrnn::SmallStreamKernel* kStreams[] = {FASTRNN_CELLS(X)};
#undef X
#if defined(FASTRNN_DOT_TILES)
#define X(Cell, name) small_stream<Cell, true>,
static constexpr fastrnn::SmallStreamKernel* kStreamsOnTiles[] = {FASTRNN_CELLS(X)};
#undef X
#endif

}  // namespace FASTRNN_NAMESPACE
