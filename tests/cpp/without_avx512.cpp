// In the place of isa_avx512*.cpp and isa_amx.cpp where the CPU cannot run what they hold: sanitized, they take
// minutes to compile. The tests execute the same source with emulated registers.
#include "cpu/isa.h"

namespace fastrnn::cpu {
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_amx() { return nullptr; }
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace fastrnn::cpu
