// x86 with AVX-512 F, VL, DQ and BW: Intel since Skylake-SP (2017), AMD since Zen 4 (2022).
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"

#if defined(__GNUC__) && defined(__x86_64__)
#if !defined(__clang__)
// GCC 12 warns of the undefined register that its own intrinsic functions begin with.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512
#define FASTRNN_ISA_NAME "avx512"
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_FMA _mm512_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm512_fmadd_pd
#define FASTRNN_MIN _mm512_min_ps
#define FASTRNN_MAX _mm512_max_ps
#define FASTRNN_CVTPH(p) _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
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
