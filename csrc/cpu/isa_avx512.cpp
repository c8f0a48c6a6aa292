// x86 with AVX-512 F, VL, DQ and BW: Intel since Skylake-SP (2017), AMD since Zen 4 (2022).
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include "cpu/avx512.h"
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512
#define FASTRNN_ISA_NAME "avx512"
#define FASTRNN_MADD(a, b) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
#include "cpu/table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#define FASTRNN_TABLE &avx512::kTable
#else
#define FASTRNN_TABLE nullptr
#endif

namespace fastrnn::cpu {
const Kernels* kernels_avx512() { return FASTRNN_TABLE; }
}  // namespace fastrnn::cpu
