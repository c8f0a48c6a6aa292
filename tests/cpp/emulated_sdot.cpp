// The product of 64-bit ARM, with its registers.
#include <cstdint>

#define FASTRNN_NAMESPACE emulated_sdot
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 32
#define FASTRNN_DOT_SIGNED
using Activation = int8_t;
#include "emulated_dot.h"

fastrnn::Kernels with_emulated_sdot(const fastrnn::Kernels& others) {
  return fastrnn::cpu::with_small_streams(others, "emulated sdot", emulated_sdot::kStreams);
}
