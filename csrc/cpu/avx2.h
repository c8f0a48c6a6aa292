// Included by an isa_*.cpp of CPUs with AVX2, FMA and F16C: their registers.
#include <immintrin.h>

#define FASTRNN_BYTES 32
#define FASTRNN_REGISTERS 16
#define FASTRNN_FMA _mm256_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm256_fmadd_pd
#define FASTRNN_MIN _mm256_min_ps
#define FASTRNN_MAX _mm256_max_ps
#define FASTRNN_CVTPH(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#define FASTRNN_MADD(a, b) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
