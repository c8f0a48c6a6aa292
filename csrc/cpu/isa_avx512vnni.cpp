// x86 with AVX-512 and its products of int8: Intel since Cascade Lake (2019), AMD since Zen 4
// (2022). Only the streams of small weights are its own, the others are those of isa_avx512.cpp.
// The same streams on tiles, which share nearly all of their code, are for isa_amx.cpp.
#include "cpu/before_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include "cpu/avx512.h"
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512vnni,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512vnni,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512vnni
#define FASTRNN_DOT(sum, a, b) _mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
#if defined(__linux__)
#define FASTRNN_DOT_TILES
#define FASTRNN_AMX
#endif
#include "cpu/table_small.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif

namespace fastrnn::cpu {

const Kernels* kernels_avx512vnni() {
  static const Kernels table =
      with_small_streams(*kernels_avx512(), "avx512vnni", avx512vnni::kStreams);
  return &table;
}

#if defined(FASTRNN_DOT_TILES)
const Kernels* kernels_avx512vnni_tiles() {
  static const Kernels table =
      with_small_streams(*kernels_avx512(), "avx512vnni tiles", avx512vnni::kStreamsOnTiles);
  return &table;
}
#endif

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
