// How the numbers of a small weight lie (small_weights.h), and how they are multiplied.
//
// Sums of int8 are exact: a row of activations is quantised to 8 bits, or to as many of 16 as leave
// room for the largest sum in an int32. All instruction sets agree in each bit of a product.
//
// For int8 the including file may define FASTRNN_CVT_BYTES, which makes bytes of the lowest bits of
// int32, FASTRNN_DOT, which adds to each int32 the products of four bytes of activations and four
// of weights, or FASTRNN_MADD, which sums pairs of products of int16. Bytes of activations are
// unsigned for FASTRNN_DOT, or with FASTRNN_DOT_SIGNED signed. Beside a FASTRNN_DOT of unsigned
// ones and registers of 64 bytes it may define FASTRNN_DOT_TILES: streams on tiles (tiles.h), too.
#pragma once

#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

using fastrnn::Format;
using Floats = Vec<float>;
using Words = Vec<uint32_t>;
using Ints = Vec<int32_t>;

template <class To, class From>
FASTRNN_INLINE To convert_to(From v) {
  if constexpr (std::is_arithmetic_v<From>)
    return static_cast<To>(v);
  else
    return __builtin_convertvector(v, To);
}

inline constexpr int kLaneWords = kLanes<float>;
inline constexpr int kPanel = 8, kHalfPanel = kPanel / 2;  // registers

// The formats. Each says how the numbers of a register's words lie, what a row of activations is
// turned to, and how a word is multiplied:
//   kTerms    numbers in a word
//   kSums     registers that a sum takes
//   kLeft     registers that the activations which meet a word take
//   kRight    registers that the numbers of a register of words take
//   place     where number t of the word of lane l lies in a register
//   words     of 32 bits that a row of k activations takes
//   left      the activations that meet word i, in every lane
//   right     the numbers of a register of words
//   add       the products of both, to a sum

// Numbers that are floats once they are loaded; so are the activations.
template <class W>
struct Reals {
  using Number = W;
  static constexpr bool kQuantised = false;
  static constexpr int kTerms = sizeof(float) / sizeof(W);
  static constexpr int kSums = 1, kLeft = kTerms, kRight = kTerms;
  using Left = Many<Floats, kTerms>;
  using Right = Many<Floats, kTerms>;
  using Sum = Floats;

  static int place(int l, int t) {
    return std::is_same_v<W, fastrnn::F16> ? t * kLaneWords + l : l * kTerms + t;
  }
  static int64_t words(int64_t k) { return round_up(k, kLaneWords); }
  FASTRNN_INLINE static Left left(const uint32_t* row, int64_t i, int64_t) {
    return each_of<kTerms>(
        [&](int t) { return set1<Floats>(bit_cast<float>(row[i * kTerms + t])); });
  }
  FASTRNN_INLINE static Right right(const W* p) {
    if constexpr (kTerms == 1) {
      return {{load<Floats>(p)}};
    } else if constexpr (std::is_same_v<W, Bf16>) {
      Words pair;
      memcpy(&pair, p, sizeof(pair));
      return {{bit_cast<Floats>(pair << 16), bit_cast<Floats>(pair & 0xffff0000u)}};
    } else {
      return {{load<Floats>(p), load<Floats>(p + kLaneWords)}};
    }
  }
  FASTRNN_INLINE static void add(Sum& sum, const Left& x, const Right& w) {
    FASTRNN_UNROLL
    for (int t = 0; t < kTerms; ++t) sum = fma(x.v[t], w.v[t], sum);
  }
};

// Bytes, and activations of 8 bits or of 16.
template <bool Wide>
struct Bytes {
  using Number = int8_t;
  static constexpr bool kQuantised = true;
  static constexpr int kTerms = 4;

#if defined(FASTRNN_DOT)
  // An activation of 16 bits is 256 times a signed byte and an unsigned one. The instruction takes
  // one kind: what is added to a byte of the other kind, the sums begin without.
#if defined(FASTRNN_DOT_SIGNED)
  static constexpr int kAdded[] = {0, -128};
#else
  static constexpr int kAdded[] = {128, 0};
#endif
  static constexpr int kParts = Wide ? 2 : 1;
  static constexpr int kSums = kParts, kLeft = kParts, kRight = 1;
  using Sum = Many<Ints, kParts>;
  using Left = Many<Ints, kParts>;
  using Right = Ints;
  typedef int8_t Narrow __attribute__((vector_size(kLaneWords)));

  static int place(int l, int t) { return l * kTerms + t; }
  static int64_t part(int64_t k) { return round_up(k, 64) / 4; }  // words, of whole rows of tiles
  static int64_t words(int64_t k) { return kParts * part(k); }
  FASTRNN_INLINE static void store_activations(uint32_t* row, int64_t i, int64_t k, Ints q) {
    char* const bytes = reinterpret_cast<char*>(row) + i;
    const Narrow high = lowest_bytes((Wide ? q >> 8 : q) + kAdded[0]);
    memcpy(bytes, &high, sizeof(high));
    if constexpr (Wide) {
      const Narrow low = lowest_bytes(q + kAdded[1]);
      memcpy(bytes + 4 * part(k), &low, sizeof(low));
    }
  }
  FASTRNN_INLINE static Narrow lowest_bytes(Ints v) {
#if defined(FASTRNN_CVT_BYTES)  // GCC 12 takes lane by lane of so wide a register
    return bit_cast<Narrow>(FASTRNN_CVT_BYTES(v));
#else
    return convert_to<Narrow>(v);
#endif
  }
  FASTRNN_INLINE static Left left(const uint32_t* row, int64_t i, int64_t k) {
    return each_of<kParts>(
        [&](int part) { return Ints{} + static_cast<int32_t>(row[part * Bytes::part(k) + i]); });
  }
  FASTRNN_INLINE static Right right(const int8_t* p) {
    Right w;
    memcpy(&w, p, sizeof(w));
    return w;
  }
  FASTRNN_INLINE static Sum first(Ints sum_of_weights) {
    return each_of<kParts>([&](int part) { return -kAdded[part] * sum_of_weights; });
  }
  FASTRNN_INLINE static void add(Sum& sum, const Left& x, Right w) {
    FASTRNN_UNROLL
    for (int part = 0; part < kParts; ++part)
      sum.v[part] = bit_cast<Ints>(FASTRNN_DOT(sum.v[part], x.v[part], w));
  }
  FASTRNN_INLINE static Ints total(const Sum& sum) {
    if constexpr (Wide)  // the larger part alone may be beyond an int32
      return bit_cast<Ints>((bit_cast<Words>(sum.v[0]) << 8) + bit_cast<Words>(sum.v[1]));
    else
      return sum.v[0];
  }
#else
  // Activations are int16.
  using Sum = Ints;
  using Narrow = typename Shape<Floats>::halves;

  static int64_t words(int64_t k) { return round_up(k, kLaneWords) / 2; }
  FASTRNN_INLINE static void store_activations(uint32_t* row, int64_t i, int64_t, Ints q) {
    const Narrow narrow = convert_to<Narrow>(bit_cast<Words>(q));
    memcpy(reinterpret_cast<char*>(row) + 2 * i, &narrow, sizeof(narrow));
  }
  FASTRNN_INLINE static Sum first(Ints) { return Sum{}; }
  FASTRNN_INLINE static Ints total(Sum sum) { return sum; }
#if defined(FASTRNN_MADD)
  // The bytes of a word in the order 0 2 1 3: a shift makes two int16 of every other one.
  typedef int16_t Pairs __attribute__((vector_size(FASTRNN_BYTES)));
  struct Both {
    Pairs first, second;
  };
  using Left = Both;
  using Right = Both;
  static constexpr int kSums = 1, kLeft = 2, kRight = 2;

  static int place(int l, int t) { return l * kTerms + (t == 1 ? 2 : t == 2 ? 1 : t); }
  FASTRNN_INLINE static Left left(const uint32_t* row, int64_t i, int64_t) {
    const auto pair = [&](int64_t at) { return bit_cast<Pairs>(row[at] + Words{}); };
    return {pair(2 * i), pair(2 * i + 1)};
  }
  FASTRNN_INLINE static Right right(const int8_t* p) {
    Pairs w;
    memcpy(&w, p, sizeof(w));
    return {(w << 8) >> 8, w >> 8};
  }
  FASTRNN_INLINE static void add(Sum& sum, const Left& x, const Right& w) {
    sum += bit_cast<Ints>(FASTRNN_MADD(x.first, w.first)) +
           bit_cast<Ints>(FASTRNN_MADD(x.second, w.second));
  }
#else
  using Left = Many<Ints, kTerms>;
  using Right = Many<Ints, kTerms>;
  static constexpr int kSums = 1, kLeft = kTerms, kRight = kTerms;

  static int place(int l, int t) { return l * kTerms + t; }
  FASTRNN_INLINE static Left left(const uint32_t* row, int64_t i, int64_t) {
    int16_t x[kTerms];
    memcpy(x, row + 2 * i, sizeof(x));
    return each_of<kTerms>([&](int t) { return Ints{} + int32_t{x[t]}; });
  }
  FASTRNN_INLINE static Right right(const int8_t* p) {
    Words w;
    memcpy(&w, p, sizeof(w));
    // A byte is moved to where its sign is that of the word.
    return each_of<kTerms>([&](int t) { return bit_cast<Ints>(w << (24 - 8 * t)) >> 24; });
  }
  FASTRNN_INLINE static void add(Sum& sum, const Left& x, const Right& w) {
    FASTRNN_UNROLL
    for (int t = 0; t < kTerms; ++t) sum += x.v[t] * w.v[t];
  }
#endif
#endif
};

}  // namespace FASTRNN_NAMESPACE
