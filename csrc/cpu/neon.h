// Included by an isa_*.cpp of 64-bit ARM: its registers and instructions.
#include <arm_neon.h>

#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 32
#define FASTRNN_LANES
#define FASTRNN_FMA(a, b, c) vfmaq_f32(c, a, b)
#define FASTRNN_FMA_DOUBLE(a, b, c) vfmaq_f64(c, a, b)
#define FASTRNN_MIN vminq_f32
#define FASTRNN_MAX vmaxq_f32
// Exact, of halves below the normal ones, too, also where denormal floats count as zero.
#define FASTRNN_CVTPH(p) vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t*>(p)))
#define FASTRNN_CVTPS(v) vcvt_f16_f32(v)
