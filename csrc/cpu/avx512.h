// Included by an isa_*.cpp of CPUs with AVX-512, before it turns to them: their registers.
#if !defined(__clang__)
// GCC 12 warns of the undefined register that its own intrinsic functions begin with.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_FMA _mm512_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm512_fmadd_pd
#define FASTRNN_MIN _mm512_min_ps
#define FASTRNN_MAX _mm512_max_ps
#define FASTRNN_CVTPH(p) _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#define FASTRNN_MADD(a, b) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
