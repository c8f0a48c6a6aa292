// Included by an isa_*.cpp of 64-bit ARM with products of bfloat16, which ends what begins here.
#include "cpu/neon.h"

#define FASTRNN_BFDOT vbfdotq_f32
#define FASTRNN_CVTNEPS vcvt_bf16_f32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16")
#endif
