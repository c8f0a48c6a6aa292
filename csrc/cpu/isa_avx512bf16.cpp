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
#include "cpu/kernels.h"

namespace fastrnn::cpu::avx512bf16 {

#define X(Cell, name) forward<Cell, Bf16>,
static constexpr ForwardKernel<Bf16>* kForward[] = {FASTRNN_CELLS(X)};
#undef X
#define X(Cell, name) backward<Cell, Bf16>,
static constexpr BackwardKernel<Bf16>* kBackward[] = {FASTRNN_CELLS(X)};
#undef X

}  // namespace fastrnn::cpu::avx512bf16
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace fastrnn::cpu {

// Compiled for every CPU.
#if !defined(__clang__)
#pragma GCC reset_options
#endif
const Kernels* kernels_avx512bf16() {
  static const Kernels table = [] {
    Kernels t = *kernels_avx512();
    t.name = "avx512bf16";
    memcpy(t.forward_bf16, avx512bf16::kForward, sizeof(avx512bf16::kForward));
    memcpy(t.backward_bf16, avx512bf16::kBackward, sizeof(avx512bf16::kBackward));
    return t;
  }();
  return &table;
}

}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Kernels* kernels_avx512bf16() { return nullptr; }
}  // namespace fastrnn::cpu
#endif
