// x86 with AVX2 and, without AVX-512, its products of int8: Intel since Alder Lake (2021) and
// Sierra Forest. Only the streams of small weights are its own, the others are those of
// isa_avx2.cpp.
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>

#include "cpu/avx2.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avxvnni,avx2,fma,f16c")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avxvnni
#define FASTRNN_DOT(sum, a, b) _mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(b))
#include "cpu/table_small.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

namespace fastrnn::cpu {

namespace {

bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

}  // namespace

const Kernels* kernels_avxvnni() {
  static const Kernels table = with_small_streams(*kernels_avx2(), "avxvnni", avxvnni::kStreams);
  static const bool offered = has_avxvnni();
  return offered ? &table : nullptr;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_avxvnni() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
