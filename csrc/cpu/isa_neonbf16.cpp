// 64-bit ARM with products of bfloat16: Apple since M2 (2022), Neoverse since V1 and N2. Only the
// kernels of bfloat16 are its own, the others are those of isa_neon.cpp.
#include "cpu/before_target.h"

// Before 16 Clang has such functions only where everything is compiled for these CPUs.
#if defined(__GNUC__) && defined(__aarch64__) && !(defined(__clang__) && __clang_major__ < 16)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
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

namespace {

bool has_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1 << 14;  // HWCAP2_BF16, which old headers lack
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &bytes, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

}  // namespace

const Kernels* kernels_neonbf16() {
  static const Kernels table =
      with_bf16(*kernels_neon(), "neonbf16", neonbf16::kForward, neonbf16::kBackward);
  static const bool offered = has_bf16();
  return offered ? &table : nullptr;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_neonbf16() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
