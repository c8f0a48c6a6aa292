// Included by an isa_*.cpp of CPUs with AVX2, FMA and F16C: their registers.
#include <immintrin.h>

#include <cstdint>

namespace fastrnn::cpu {
// From the eighth number back: masks of the first words of a register.
inline constexpr int32_t kFirstWords[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
}  // namespace fastrnn::cpu

#define FASTRNN_BYTES 32
#define FASTRNN_REGISTERS 16
#define FASTRNN_FMA _mm256_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm256_fmadd_pd
#define FASTRNN_MIN _mm256_min_ps
#define FASTRNN_MAX _mm256_max_ps
// The first n numbers of 4 or 8 bytes from p on; what follows is zero, and not touched. AMD takes
// long for the instruction that stores like this.
#define FASTRNN_FIRST(words) \
  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(fastrnn::cpu::kFirstWords + 8 - (words)))
#define FASTRNN_LOAD_PART_4(p, n) _mm256_maskload_ps(p, FASTRNN_FIRST(n))
#define FASTRNN_LOAD_PART_8(p, n) _mm256_maskload_pd(p, FASTRNN_FIRST(2 * (n)))
#define FASTRNN_CVTPH(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#define FASTRNN_CVTPS(v) _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)
#define FASTRNN_MADD(a, b) _mm256_madd_epi16((__m256i)(a), (__m256i)(b))
