// Included by an isa_*.cpp of CPUs with AVX-512 and its products of bfloat16, which has defined
// FASTRNN_NAMESPACE: their kernels of Bf16. Nothing after it is compiled for these CPUs.
#if !defined(__clang__)
// GCC 12 warns of the undefined register that its own intrinsic functions begin with.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_FMA _mm512_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm512_fmadd_pd
#define FASTRNN_MIN _mm512_min_ps
#define FASTRNN_MAX _mm512_max_ps
#define FASTRNN_PAIRS
#define FASTRNN_DPBF16PS _mm512_dpbf16_ps
#define FASTRNN_CVTNEPS _mm512_cvtneps_pbh
#include "cpu/table_bf16.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC reset_options
#endif
