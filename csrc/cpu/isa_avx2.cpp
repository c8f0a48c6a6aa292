// x86 with AVX2, FMA and F16C: Intel since Haswell (2013), AMD since Excavator (2015).
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx2
#define FASTRNN_ISA_NAME "avx2"
#define FASTRNN_BYTES 32
#define FASTRNN_REGISTERS 16
#define FASTRNN_FMA _mm256_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm256_fmadd_pd
#define FASTRNN_MIN _mm256_min_ps
#define FASTRNN_MAX _mm256_max_ps
#define FASTRNN_CVTPH(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#define FASTRNN_MADD(a, b) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
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
