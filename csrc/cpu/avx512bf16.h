// Included by an isa_*.cpp of CPUs with AVX-512 and its products of bfloat16, which has defined
// FASTRNN_NAMESPACE: their kernels of Bf16, or, with FASTRNN_ROUNDS, those of float that round for
// products. Nothing after it is compiled for these CPUs.
#include "cpu/avx512.h"
#include "cpu/before_target.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_PAIRS
#define FASTRNN_DPBF16PS _mm512_dpbf16_ps
#define FASTRNN_CVTNEPS _mm512_cvtneps_pbh
#if !defined(FASTRNN_ROUNDS)
#include "cpu/table_bf16.h"
#endif
#if defined(FASTRNN_TILES) || defined(FASTRNN_ROUNDS)
#include "cpu/table_parts.h"
#endif
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif
