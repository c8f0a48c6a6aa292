// The kernels of Bf16 with emulated tiles, for test_kernels.cpp.
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

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others) {
  return fastrnn::cpu::with_bf16(others, "emulated tiles", emulated_tiles::kForward,
                                 emulated_tiles::kBackward);
}
