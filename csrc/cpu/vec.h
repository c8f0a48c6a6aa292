// One SIMD register as a value, and the functions that C++ has no operator for.
//
// Vec<T> is GCC's and Clang's vector type: arithmetic, comparison and ?: are operators and compile
// to the instruction set that the including isa_*.cpp selected. A compiler without them gets
// Vec<T> = T, one lane. The including file defines FASTRNN_BYTES, the width of a register
// (sizeof(T) or less means one lane), and FASTRNN_NAMESPACE, one per instruction set, so that the
// linker never merges code of two of them. Where there are such intrinsic functions, it also
// defines FASTRNN_CVTNEPS, which rounds floats to Bf16, FASTRNN_MIN and FASTRNN_MAX, of floats,
// and, both or none, FASTRNN_FMA and FASTRNN_FMA_DOUBLE, and FASTRNN_CVTPH and FASTRNN_CVTPS, which
// make floats of the F16 at an address, and round floats to F16.
//
// Everything is compiled with -ffp-contract=off. A compiler that may fuse a product and a sum
// chooses anew wherever it inlines, which of two products too, and bits would differ from place to
// place.
//
// Bf16 is what numbers are in memory and in products, never what they are computed in: Vec<Bf16> is
// a register of floats, and a load or a store with a pointer to Bf16 converts (halves.h). So it is
// with F16.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "layer.h"

#if defined(__GNUC__)
#define FASTRNN_INLINE inline __attribute__((always_inline))
#define FASTRNN_NOINLINE __attribute__((noinline))
#define FASTRNN_UNROLL _Pragma("GCC unroll 16")
#define FASTRNN_UNROLL_BY_4 _Pragma("GCC unroll 4")
#define FASTRNN_ASSUME(true_here) \
  if (!(true_here)) __builtin_unreachable()
#else
#define FASTRNN_INLINE inline
#define FASTRNN_NOINLINE
#define FASTRNN_UNROLL
#define FASTRNN_UNROLL_BY_4
#define FASTRNN_ASSUME(true_here)
#endif
#define FASTRNN_FN static FASTRNN_INLINE
#if defined(__GNUC__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTRNN_SHUFFLE 1
#endif
#endif

namespace FASTRNN_NAMESPACE {

#if defined(__GNUC__)
template <class T>
struct Register {
  static constexpr int kLanes = FASTRNN_BYTES / sizeof(T);
  typedef T type __attribute__((vector_size(FASTRNN_BYTES)));
};
#else
template <class T>
struct Register {
  static constexpr int kLanes = 1;
  using type = T;
};
#endif
using fastrnn::Bf16, fastrnn::F16;
template <>
struct Register<Bf16> : Register<float> {};
template <>
struct Register<F16> : Register<float> {};
// A float as a sum (parts.h). Only whole blocks of them have an order in memory.
inline constexpr int kParts = 3;
struct Parts {
  Bf16 of[kParts];
};
template <>
struct Register<Parts> : Register<float> {};
template <class T>
using Vec = typename Register<T>::type;
template <class T>
inline constexpr int kLanes = Register<T>::kLanes;

// What numbers of type S are computed in.
template <class S>
using Compute = std::conditional_t<
    std::is_same_v<S, Bf16> || std::is_same_v<S, F16> || std::is_same_v<S, Parts>, float, S>;

// What a register or a scalar V is made of, the unsigned integers of the same shape, and those of
// 16 bits that are as many.
template <class V>
struct Shape {
  using scalar = std::remove_cvref_t<decltype(V{}[0])>;
  using word = std::conditional_t<sizeof(scalar) == 4, uint32_t, uint64_t>;
  typedef word bits __attribute__((vector_size(sizeof(V))));
  typedef uint16_t halves __attribute__((vector_size(sizeof(V) / sizeof(scalar) * 2)));
};
template <>
struct Shape<float> {
  using scalar = float;
  using bits = uint32_t;
  using halves = uint16_t;
};
template <>
struct Shape<double> {
  using scalar = double;
  using bits = uint64_t;
};
template <class V>
using Scalar = typename Shape<V>::scalar;

template <class V>
FASTRNN_INLINE V set1(Scalar<V> x) {
  return x - V{};  // x - 0 keeps the sign of a zero
}

template <class V>
FASTRNN_INLINE V load(const Scalar<V>* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
FASTRNN_INLINE void store(Scalar<V>* p, V v) {
  memcpy(p, &v, sizeof(V));
}

template <class To, class From>
FASTRNN_INLINE To bit_cast(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class M, class V>
FASTRNN_INLINE V select(M mask, V yes, V no) {
  return mask ? yes : no;
}

// Bytes of a line of memory.
inline constexpr int64_t kLine = 64;
// A line of memory into the second-level cache, to be read, or into the first, to be written. Any
// address is allowed.
FASTRNN_FN void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#endif
}
FASTRNN_FN void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) prefetch(static_cast<const char*>(p) + i);
}
FASTRNN_FN void prefetch_write([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 1, 3);
#endif
}

// K values of V as one. A cell is a long chain of instructions each of which waits for the one
// before: those of several rows together fill the gaps.
template <class V, int K>
struct Many {
  V v[K];
};
template <class V, int K>
struct Shape<Many<V, K>> {
  using scalar = Scalar<V>;
};
template <int K, class F>
FASTRNN_INLINE auto each_of(F&& f) {
  Many<decltype(f(0)), K> out;
  FASTRNN_UNROLL
  for (int k = 0; k < K; ++k) out.v[k] = f(k);
  return out;
}
#define FASTRNN_EACH(op)                                                             \
  template <class V, int K>                                                          \
  FASTRNN_INLINE auto operator op(Many<V, K> a, Many<V, K> b) {                      \
    return each_of<K>([&](int k) { return a.v[k] op b.v[k]; });                      \
  }                                                                                  \
  template <class V, int K>                                                          \
  FASTRNN_INLINE auto operator op(Many<V, K> a, std::type_identity_t<Scalar<V>> b) { \
    return each_of<K>([&](int k) { return a.v[k] op b; });                           \
  }                                                                                  \
  template <class V, int K>                                                          \
  FASTRNN_INLINE auto operator op(std::type_identity_t<Scalar<V>> a, Many<V, K> b) { \
    return each_of<K>([&](int k) { return a op b.v[k]; });                           \
  }
FASTRNN_EACH(+)
FASTRNN_EACH(-)
FASTRNN_EACH(*)
FASTRNN_EACH(/)
FASTRNN_EACH(<)
FASTRNN_EACH(<=)
#undef FASTRNN_EACH
template <class V, int K>
FASTRNN_INLINE Many<V, K> operator-(Many<V, K> a) {
  return each_of<K>([&](int k) { return -a.v[k]; });
}
template <class M, class V, int K>
FASTRNN_INLINE Many<V, K> select(Many<M, K> mask, Many<V, K> yes, Many<V, K> no) {
  return each_of<K>([&](int k) { return select(mask.v[k], yes.v[k], no.v[k]); });
}

// a b + c, rounded once where the instruction set has such an instruction, else twice: always the
// one or the other, for numbers as for registers.
template <class V>
FASTRNN_INLINE V fma(V a, V b, V c) {
#if defined(FASTRNN_FMA)
  if constexpr (std::is_same_v<V, float>)
    return __builtin_fmaf(a, b, c);
  else if constexpr (std::is_same_v<V, double>)
    return __builtin_fma(a, b, c);
  else if constexpr (std::is_same_v<Scalar<V>, float>)
    return FASTRNN_FMA(a, b, c);
  else
    return FASTRNN_FMA_DOUBLE(a, b, c);
#else
  return a * b + c;
#endif
}
template <class V, int K>
FASTRNN_INLINE Many<V, K> fma(Many<V, K> a, Many<V, K> b, Many<V, K> c) {
  return each_of<K>([&](int k) { return fma(a.v[k], b.v[k], c.v[k]); });
}

// body(0), body(1), ... with N constants.
template <int N, class F>
FASTRNN_INLINE void each_constant(F&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// x, or the bound that it is beyond; a NaN stays.
template <class V>
FASTRNN_INLINE V clamp(V x, Scalar<V> least, Scalar<V> most) {
  const V low = set1<V>(least), high = set1<V>(most);
#if defined(FASTRNN_MIN)
  // One instruction each, which GCC 12 does not find. They return x if it is a NaN.
  if constexpr (std::is_same_v<V, Vec<float>>) return FASTRNN_MAX(low, FASTRNN_MIN(high, x));
#endif
  x = select(x > high, high, x);
  return select(x < low, low, x);
}
template <class V, int K>
FASTRNN_INLINE Many<V, K> clamp(Many<V, K> x, Scalar<V> least, Scalar<V> most) {
  return each_of<K>([&](int k) { return clamp(x.v[k], least, most); });
}

// Transposes the kLanes x kLanes block v in place.
template <class T>
FASTRNN_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int kCount = kLanes<T>;
  if constexpr (kCount > 1) {
#if defined(FASTRNN_SHUFFLE)
    // Swaps the off-diagonal blocks of size B inside every block of size 2B; B = 1, 2, 4, ...
    const auto stage =
        [&]<int B, int... L>(std::integral_constant<int, B>, std::integer_sequence<int, L...>)
            __attribute__((always_inline)) {
              FASTRNN_UNROLL
              for (int i = 0; i < kCount; ++i) {
                if (i & B) continue;
                const Vec<T> a = v[i], b = v[i + B];
                v[i] = __builtin_shufflevector(a, b, (L & B ? kCount + L - B : L)...);
                v[i + B] = __builtin_shufflevector(a, b, (L & B ? kCount + L : L + B)...);
              }
            };
    constexpr auto lanes = std::make_integer_sequence<int, kCount>{};
    stage(std::integral_constant<int, 1>{}, lanes);
    if constexpr (kCount > 2) stage(std::integral_constant<int, 2>{}, lanes);
    if constexpr (kCount > 4) stage(std::integral_constant<int, 4>{}, lanes);
    if constexpr (kCount > 8) stage(std::integral_constant<int, 8>{}, lanes);
#else
    T from[kCount][kCount], to[kCount][kCount];
    memcpy(from, v, sizeof(from));
    for (int i = 0; i < kCount; ++i)
      for (int j = 0; j < kCount; ++j) to[i][j] = from[j][i];
    memcpy(v, to, sizeof(to));
#endif
  }
}

// In every 2 W lanes: the sums of two lanes of a that are W apart, and then those of b.
template <class T, int W>
FASTRNN_INLINE Vec<T> add_halves(Vec<T> a, Vec<T> b) {
#if defined(FASTRNN_SHUFFLE)
  return [&]<int... L>(std::integer_sequence<int, L...>) __attribute__((always_inline)) {
    constexpr int kCount = kLanes<T>;
    return __builtin_shufflevector(a, b, (L & W ? kCount + L : L)...) +
           __builtin_shufflevector(a, b, (L & W ? kCount + L - W : L + W)...);
  }(std::make_integer_sequence<int, kLanes<T>>{});
#else
  Vec<T> sum;
  for (int l = 0; l < kLanes<T>; ++l) sum[l] = l & W ? b[l] + b[l - W] : a[l] + a[l + W];
  return sum;
#endif
}

// In lane l the sum of the lanes of v[l], which are added by halves. Changes v.
template <class T>
FASTRNN_INLINE Vec<T> sums_of_lanes(Vec<T> (&v)[kLanes<T>]) {
  const auto stage = [&]<int W>(std::integral_constant<int, W>) __attribute__((always_inline)) {
    FASTRNN_UNROLL
    for (int l = 0; l < W; ++l) v[l] = add_halves<T, W>(v[l], v[l + W]);
  };
  if constexpr (kLanes<T> > 8) stage(std::integral_constant<int, 8>{});
  if constexpr (kLanes<T> > 4) stage(std::integral_constant<int, 4>{});
  if constexpr (kLanes<T> > 2) stage(std::integral_constant<int, 2>{});
  if constexpr (kLanes<T> > 1) stage(std::integral_constant<int, 1>{});
  return v[0];
}

}  // namespace FASTRNN_NAMESPACE
