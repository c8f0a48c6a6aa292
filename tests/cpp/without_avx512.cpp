// In the place of isa_avx512*.cpp and isa_amx.cpp, which take minutes to compile with sanitizers;
// and what AMX reads, these do not see. The tests execute the same source with emulated registers,
// pairs and tiles.
#include "cpu/isa.h"

namespace fastrnn::cpu {
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_avx512bf16() { return nullptr; }
const Kernels* kernels_avx512vnni() { return nullptr; }
const Kernels* kernels_amx() { return nullptr; }
}  // namespace fastrnn::cpu
