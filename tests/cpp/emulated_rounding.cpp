// The kernels of float whose products are of numbers rounded to Bf16, without an instruction for a
// pair, for test_parts_layers.cpp.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_NAMESPACE emulated_rounding
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#define FASTRNN_ROUNDS
#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "cpu/table_parts.h"

fastrnn::Kernels with_emulated_rounding(const fastrnn::Kernels& others) {
  return fastrnn::cpu::with_parts(others, emulated_rounding::kForwardInParts,
                                  emulated_rounding::kBackwardInParts);
}
