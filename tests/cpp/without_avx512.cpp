// In the place of isa_avx512.cpp where the CPU cannot run what it holds: sanitized, it takes minutes
// to compile. The tests execute the same source with emulated registers.
#include "cpu/isa.h"

namespace fastrnn::cpu {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace fastrnn::cpu
