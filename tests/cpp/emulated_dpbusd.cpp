// The product of AVX-VNNI, with its registers.
#include <cstdint>

#define FASTRNN_NAMESPACE emulated_dpbusd
#define FASTRNN_BYTES 32
#define FASTRNN_REGISTERS 16
using Activation = uint8_t;
#include "emulated_dot.h"

fastrnn::Kernels with_emulated_dpbusd(const fastrnn::Kernels& others) {
  return fastrnn::cpu::with_small_streams(others, "emulated dpbusd", emulated_dpbusd::kStreams);
}
