// What a matrix product multiplies: numbers, or pairs of Bf16 where the CPU multiplies those.
//
// The including file defines FASTRNN_PAIRS for products of pairs, and beside it FASTRNN_TILES for
// those of whole tiles of pairs (tiles.h); and FASTRNN_DPBF16PS or FASTRNN_BFDOT where there is
// such an intrinsic function for a pair, of x86 or of ARM.
#pragma once

#include "cpu/vec.h"

namespace FASTRNN_NAMESPACE {

// What a product takes numbers of type S as: Bf16 where it multiplies pairs of them.
#if defined(FASTRNN_PAIRS)
template <class S>
using Operand = S;
#else
template <class S>
using Operand = Compute<S>;
#endif
// A register of operands: one in each lane, or, of Bf16, two, which follow in memory.
template <class O>
inline constexpr int kTerms = std::is_same_v<O, Bf16> ? 2 : 1;
// Whether a product of them goes through tiles (tiles.h), and the depth it goes through at once:
// what a row of operands lacks to a multiple of that is zeros.
#if defined(FASTRNN_TILES)
template <class O>
inline constexpr bool kTiled = std::is_same_v<O, Bf16>;
#else
template <class O>
inline constexpr bool kTiled = false;
#endif
template <class O>
inline constexpr int kGrain = kTiled<O> ? kTerms<O> * kLanes<O> : kTerms<O>;
// Rows of a panel, `ld` apart. Two words: a micro-kernel gets them in registers.
template <class O>
struct Rows {
  const O* data;
  int64_t ld;
};
// Memory that will be read soon: of it a micro-kernel prefetches so many bytes at each row of its
// panel, or, if they are zero, none.
struct Ahead {
  const void* at;
  int64_t stride;

  void move(int64_t rows) { at = static_cast<const char*>(at) + rows * stride; }
};
// What a thread must have while it multiplies them.
template <class O>
struct Multiplying {};
template <class O>
using Operands = Vec<std::conditional_t<std::is_same_v<O, Bf16>, uint32_t, O>>;

template <class O>
FASTRNN_INLINE Operands<O> load_operands(const O* p) {
  Operands<O> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <class O>
FASTRNN_INLINE void store_operands(O* p, Operands<O> v) {
  memcpy(p, &v, sizeof(v));
}
// The kTerms numbers at p in every lane.
template <class O>
FASTRNN_INLINE Operands<O> broadcast(const O* p) {
  if constexpr (kTerms<O> == 1) {
    return set1<Vec<O>>(*p);
  } else {
    uint32_t pair;
    memcpy(&pair, p, sizeof(pair));
    return pair - Operands<O>{};
  }
}
// first[l] and second[l] in lane l.
FASTRNN_FN Operands<Bf16> pairs(const Bf16* first, const Bf16* second) {
  return load_bits<Vec<float>>(first) | (load_bits<Vec<float>>(second) << 16);
}

// sum += a b in every lane; of a pair the second product comes first, as x86's instruction has it.
// Products of Bf16 are exact, but the instruction takes numbers below 2^-126 for zero.
template <class O>
FASTRNN_INLINE void multiply_add(Vec<O>& sum, Operands<O> a, Operands<O> b) {
  if constexpr (kTerms<O> == 1) {
    sum = fma(a, b, sum);
  } else {
#if defined(FASTRNN_DPBF16PS)
    sum = bit_cast<Vec<O>>(
        FASTRNN_DPBF16PS(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
#elif defined(FASTRNN_BFDOT)
    sum = FASTRNN_BFDOT(sum, bit_cast<bfloat16x8_t>(a), bit_cast<bfloat16x8_t>(b));
#else
    sum = fma(bit_cast<Vec<O>>(a & 0xffff0000u), bit_cast<Vec<O>>(b & 0xffff0000u), sum);
    sum = fma(bit_cast<Vec<O>>(a << 16), bit_cast<Vec<O>>(b << 16), sum);
#endif
  }
}

}  // namespace FASTRNN_NAMESPACE
