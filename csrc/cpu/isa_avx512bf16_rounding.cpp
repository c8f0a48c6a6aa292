// The same CPUs as isa_avx512bf16.cpp: layers of float whose products are of numbers that are
// rounded to bfloat16, where the user allows that. States and sums are floats.
#include "cpu/isa.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512bf16_rounding
#define FASTRNN_ROUNDS
#include "cpu/avx512bf16.h"

namespace fastrnn::cpu {

// A Zen 4 multiplies a pair in the time of one number, as measured. Intel's CPUs are said to take
// twice as long, so that there is nothing to gain; nobody has timed these kernels there.
Kernels with_rounded_products(const Kernels& others) {
  __builtin_cpu_init();
  if (!__builtin_cpu_is("amd")) return others;
  return with_parts(others, avx512bf16_rounding::kForwardInParts,
                    avx512bf16_rounding::kBackwardInParts);
}

}  // namespace fastrnn::cpu
#endif
