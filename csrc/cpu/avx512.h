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
// The first n numbers of 2, 4 or 8 bytes from p on, or to it; what follows is zero, or not touched.
#define FASTRNN_FIRST(bits, n) static_cast<__mmask##bits>((1u << (n)) - 1)
#define FASTRNN_LOAD_PART_2(p, n) _mm256_maskz_loadu_epi16(FASTRNN_FIRST(16, n), p)
#define FASTRNN_LOAD_PART_4(p, n) _mm512_maskz_loadu_ps(FASTRNN_FIRST(16, n), p)
#define FASTRNN_LOAD_PART_8(p, n) _mm512_maskz_loadu_pd(FASTRNN_FIRST(8, n), p)
#define FASTRNN_STORE_PART_2(p, from, n) \
  _mm256_mask_storeu_epi16(p, FASTRNN_FIRST(16, n), _mm256_loadu_si256((const __m256i*)(from)))
#define FASTRNN_STORE_PART_4(p, v, n) _mm512_mask_storeu_ps(p, FASTRNN_FIRST(16, n), (__m512)(v))
#define FASTRNN_STORE_PART_8(p, v, n) _mm512_mask_storeu_pd(p, FASTRNN_FIRST(8, n), (__m512d)(v))
#define FASTRNN_CVTPH(p) _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#define FASTRNN_CVTPS(v) _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define FASTRNN_CVT_BYTES(v) _mm512_cvtepi32_epi8((__m512i)(v))
#define FASTRNN_MADD(a, b) _mm512_madd_epi16((__m512i)(a), (__m512i)(b))
