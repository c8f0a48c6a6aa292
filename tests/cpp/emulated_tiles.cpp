// The kernels of Bf16, and of float in parts, with emulated tiles, for test_kernels.cpp.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_NAMESPACE emulated_tiles
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#define FASTRNN_TILES
#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "cpu/table_bf16.h"
#include "cpu/table_parts.h"

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others) {
  fastrnn::Kernels table = fastrnn::cpu::with_parts(
      fastrnn::cpu::with_bf16(others, "emulated tiles", emulated_tiles::kForward,
                              emulated_tiles::kBackward),
      emulated_tiles::kForwardInParts, emulated_tiles::kBackwardInParts);
  // All layers of float, however large.
  int i = 0;
#define X(Cell, name)                                                            \
  table.forward_float[i] = emulated_tiles::forward<emulated_tiles::Cell, float>; \
  table.backward_float[i++] = emulated_tiles::backward<emulated_tiles::Cell, float>;
  FASTRNN_CELLS(X)
#undef X
  return table;
}
