// x86 with AVX-512 and its products of bfloat16: Intel since Cooper Lake (2020), AMD since Zen 4
// (2022). Only the kernels of bfloat16 are its own, the others are those of isa_avx512.cpp.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/team.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_NAMESPACE fastrnn::cpu::avx512bf16
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_MIN _mm512_min_ps
#define FASTRNN_MAX _mm512_max_ps
#define FASTRNN_PAIRS
#define FASTRNN_DPBF16PS _mm512_dpbf16_ps
#define FASTRNN_CVTNEPS _mm512_cvtneps_pbh
#include "cpu/table_bf16.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace fastrnn::cpu {

// Compiled for every CPU.
#if !defined(__clang__)
#pragma GCC reset_options
#endif
const Kernels* kernels_avx512bf16() {
  static const Kernels table =
      with_bf16(*kernels_avx512(), "avx512bf16", avx512bf16::kForward, avx512bf16::kBackward);
  return &table;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
