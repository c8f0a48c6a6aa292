// x86 with AVX-512 and its products of bfloat16: Intel since Cooper Lake (2020), AMD since Zen 4
// (2022). Only the kernels of bfloat16 are its own, and those of float that round for products,
// which isa_avx512bf16_rounding.cpp has. The others are those of isa_avx512vnni.cpp.
#include "cpu/isa.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512bf16
#include "cpu/avx512bf16.h"

namespace fastrnn::cpu {

const Kernels* kernels_avx512bf16() {
  static const Kernels table = with_rounded_products(
      with_bf16(*kernels_avx512vnni(), "avx512bf16", avx512bf16::kForward, avx512bf16::kBackward));
  return &table;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
