// x86 with AVX2, FMA and F16C: Intel since Haswell (2013), AMD since Excavator (2015).
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include "cpu/avx2.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx2
#define FASTRNN_ISA_NAME "avx2"
#include "cpu/table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#define FASTRNN_TABLE &avx2::kTable
#else
#define FASTRNN_TABLE nullptr
#endif

namespace fastrnn::cpu {
const Kernels* kernels_avx2() { return FASTRNN_TABLE; }
}  // namespace fastrnn::cpu
