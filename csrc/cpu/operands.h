// What a matrix product multiplies: numbers, or pairs of Bf16 where the CPU multiplies those.
//
// The including file defines FASTRNN_PAIRS for products of pairs, and beside it FASTRNN_TILES for
// those of whole tiles of pairs (tiles.h) or FASTRNN_ROUNDS, by which floats are rounded for
// products; and FASTRNN_DPBF16PS or FASTRNN_BFDOT where there is such an intrinsic function for a
// pair, of x86 or of ARM.
#pragma once

#include "cpu/ends.h"

namespace FASTRNN_NAMESPACE {

constexpr FASTRNN_FN int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr FASTRNN_FN int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr FASTRNN_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr FASTRNN_FN int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What a product takes numbers of type S as: Bf16 where it multiplies pairs of them, and of a float
// its Parts where it multiplies tiles.
#if defined(FASTRNN_TILES)
template <class S>
using Operand = std::conditional_t<std::is_same_v<S, float>, Parts, S>;
#elif defined(FASTRNN_ROUNDS)
template <class S>
using Operand = std::conditional_t<std::is_same_v<S, float>, Bf16, S>;
#elif defined(FASTRNN_PAIRS)
template <class S>
using Operand = S;
#else
template <class S>
using Operand = Compute<S>;
#endif
// A register of operands: one in each lane, or, of Bf16, two, which follow in memory.
template <class O>
inline constexpr int kTerms = std::is_same_v<O, Bf16> ? 2 : 1;
// Whether numbers that are computed as they are stored are multiplied as others.
template <class S>
inline constexpr bool kConverts = std::is_same_v<S, Compute<S>> && !std::is_same_v<S, Operand<S>>;
// Whether each number is stored as the parts that it is a sum of (parts.h).
template <class O>
inline constexpr bool kInParts = std::is_same_v<O, Parts>;
// Whether a product of them goes through tiles (tiles.h), and the depth it goes through at once:
// what a row of operands lacks to a multiple of that is zeros.
#if defined(FASTRNN_TILES)
template <class O>
inline constexpr bool kTiled = std::is_same_v<O, Bf16> || kInParts<O>;
#else
template <class O>
inline constexpr bool kTiled = false;
#endif
template <class O>
inline constexpr int kGrain = kTiled<O> ? 2 * kLanes<O> : kTerms<O>;
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
// What a thread must have while it multiplies them, of parts the first so many (parts.h).
template <class O>
struct Multiplying {
  explicit Multiplying(int) {}
};
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
    return opaque(pair - Operands<O>{});
  }
}
// first[l] and second[l] in lane l.
FASTRNN_FN Operands<Bf16> pairs(const Bf16* first, const Bf16* second) {
  return load_bits<Vec<float>>(first) | (load_bits<Vec<float>>(second) << 16);
}
FASTRNN_FN Operands<Bf16> pairs(const float* first, const float* second) {
  Bf16 lane[2][kLanes<float>];
  store<Vec<float>>(lane[0], load<Vec<float>>(first));
  store<Vec<float>>(lane[1], load<Vec<float>>(second));
  return pairs(lane[0], lane[1]);
}
// The same of the first `count` lanes, the others zero. Where `second` is null so are its numbers.
template <class S>
FASTRNN_NOINLINE Operands<Bf16> pairs(const S* first, const S* second, int64_t count) {
  S lane[2][kLanes<float>] = {};
  if (count > 0) memcpy(lane[0], first, count * sizeof(S));
  if (count > 0 && second) memcpy(lane[1], second, count * sizeof(S));
  return pairs(lane[0], lane[1]);
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

// One register of a row of `columns` numbers; the last one of a row may be partly outside.
template <class T>
struct Lane {
  using V = Vec<T>;
  const int64_t at, valid;

  Lane(int64_t column, int64_t columns)
      : at(column), valid(max(0, min(kLanes<T>, columns - column))) {}
  template <class S>
  FASTRNN_INLINE V load_from(const S* row) const {
    return valid == kLanes<T> ? load<V>(row + at) : load_part<V>(row + at, valid);
  }
  template <class S>
  FASTRNN_INLINE void store_to(S* row, V v) const {
    if constexpr (kInParts<S>) {  // what follows a row's numbers is zero
      store_parts(row, at, valid == kLanes<T> ? v : first_lanes(v, valid));
    } else if (valid == kLanes<T>) {
      store<V>(row + at, v);
    } else {
      store_part<V>(row + at, v, valid);
    }
  }
};

// Makes zero what follows `count` numbers of a row, up to a multiple of kGrain, or, where O is in
// parts, the whole of the last block: to be called before they are written.
template <class O>
void clear_beyond(O* row, int64_t count) {
  const int64_t from = kInParts<O> ? count / kGrain<O> * kGrain<O> : count;
  memset(row + from, 0, (round_up(count, kGrain<O>) - from) * sizeof(O));
}

// count numbers from one place to another, converted where the two differ in type.
template <class To, class From>
void copy(To* to, const From* from, int64_t count) {
  if constexpr (std::is_same_v<To, From>) {
    if (count > 0) memcpy(to, from, count * sizeof(To));
  } else {
    for (int64_t at = 0; at < count; at += kLanes<To>) {
      const Lane<To> lane(at, count);
      lane.store_to(to, lane.load_from(from));
    }
  }
}

}  // namespace FASTRNN_NAMESPACE
