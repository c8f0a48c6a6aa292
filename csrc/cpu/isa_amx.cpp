// x86 with AVX-512, its products of bfloat16, and those of AMX: Intel since Sapphire Rapids (2023).
// Only the kernels of bfloat16, and those of float in parts, are its own; the others are those of
// isa_avx512vnni.cpp, with streams on tiles.
#include "cpu/isa.h"

#if defined(__linux__) && defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define FASTRNN_NAMESPACE fastrnn::cpu::amx
#define FASTRNN_TILES
#define FASTRNN_AMX
#include "cpu/avx512bf16.h"

namespace fastrnn::cpu {

namespace {

// Whether the CPU has them, and Linux keeps the tiles of this process: it does so on request only,
// as their registers take 8 KiB.
bool has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  constexpr long kRequest = 0x1023, kTileData = 18;             // ARCH_REQ_XCOMP_PERM
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kNeeded) == kNeeded &&
         syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

const Kernels* kernels_amx() {
  static const Kernels table =
      with_parts(with_bf16(*kernels_avx512vnni_tiles(), "amx", amx::kForward, amx::kBackward),
                 amx::kForwardInParts, amx::kBackwardInParts);
  static const bool offered = has_tiles();
  return offered ? &table : nullptr;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_amx() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
