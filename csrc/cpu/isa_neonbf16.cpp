// 64-bit ARM with products of bfloat16: Apple since M2 (2022), Neoverse since V1 and N2. Only the
// kernels of bfloat16 are its own, the others are those of isa_neondot.cpp.
#include "cpu/before_target.h"

// Before 16 Clang has such functions only where everything is compiled for these CPUs.
#if defined(__GNUC__) && defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 16)
#include "cpu/arm_features.h"
#define FASTRNN_NAMESPACE fastrnn::cpu::neonbf16
#define FASTRNN_PAIRS
#include "cpu/neonbf16.h"
#include "cpu/table_bf16.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

namespace fastrnn::cpu {

const Kernels* kernels_neonbf16() {
  const Kernels* const others = kernels_neondot();
  static const Kernels table = with_bf16(others ? *others : *kernels_neon(), "neonbf16",
                                         neonbf16::kForward, neonbf16::kBackward);
  static const bool offered = arm_has(0, 1ul << 14, "hw.optional.arm.FEAT_BF16");
  return offered ? &table : nullptr;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_neonbf16() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
