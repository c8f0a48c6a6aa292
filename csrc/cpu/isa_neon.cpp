// 64-bit ARM, all of which have NEON.
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__aarch64__)
#define FASTRNN_NAMESPACE fastrnn::cpu::neon
#define FASTRNN_ISA_NAME "neon"
#include "cpu/neon.h"
#include "cpu/table.h"
#define FASTRNN_TABLE &neon::kTable
#else
#define FASTRNN_TABLE nullptr
#endif

namespace fastrnn::cpu {
const Kernels* kernels_neon() { return FASTRNN_TABLE; }
}  // namespace fastrnn::cpu
