// 64-bit ARM with products of int8: Apple since A11 (2017), Cortex since A75 and A55, Neoverse.
// Only the streams of small weights are its own, the others are those of isa_neon.cpp.
#include "cpu/before_target.h"

// Before 16 Clang has such functions only where everything is compiled for these CPUs.
#if defined(__GNUC__) && defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 16)
#include "cpu/arm_features.h"
#include "cpu/neon.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::neondot
#define FASTRNN_DOT(sum, a, b) vdotq_s32((int32x4_t)(sum), (int8x16_t)(a), (int8x16_t)(b))
#define FASTRNN_DOT_SIGNED
#include "cpu/table_small.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

namespace fastrnn::cpu {

const Kernels* kernels_neondot() {
  static const Kernels table = with_small_streams(*kernels_neon(), "neondot", neondot::kStreams);
  static const bool offered = arm_has(1ul << 20, 0, "hw.optional.arm.FEAT_DotProd");
  return offered ? &table : nullptr;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_neondot() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
