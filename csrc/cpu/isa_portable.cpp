// Any CPU: 128-bit registers where the compiler has vector types, else single numbers.
#include "cpu/before_target.h"

#define FASTRNN_NAMESPACE fastrnn::cpu::portable
#define FASTRNN_ISA_NAME "portable"
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 16
#include "cpu/table.h"

namespace fastrnn::cpu {
const Kernels* kernels_portable() { return &portable::kTable; }
}  // namespace fastrnn::cpu
