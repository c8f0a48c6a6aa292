// One SIMD register as a value, and the functions that C++ has no operator for.
//
// Vec<T> is GCC's and Clang's vector type: arithmetic, comparison and ?: are operators and compile
// to the instruction set that the including isa_*.cpp selected. A compiler without them gets
// Vec<T> = T, one lane. The including file defines FASTRNN_BYTES, the width of a register
// (sizeof(T) or less means one lane), and FASTRNN_NAMESPACE, one per instruction set, so that the
// linker never merges code of two of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__GNUC__)
#define FASTRNN_INLINE inline __attribute__((always_inline))
#define FASTRNN_UNROLL _Pragma("GCC unroll 16")
#else
#define FASTRNN_INLINE inline
#define FASTRNN_UNROLL
#endif
#define FASTRNN_FN static FASTRNN_INLINE

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
template <class T>
using Vec = typename Register<T>::type;
template <class T>
inline constexpr int kLanes = Register<T>::kLanes;

// What a register or a scalar V is made of, and the unsigned integers of the same shape.
template <class V>
struct Shape {
  using scalar = std::remove_cvref_t<decltype(V{}[0])>;
  using word = std::conditional_t<sizeof(scalar) == 4, uint32_t, uint64_t>;
  typedef word bits __attribute__((vector_size(sizeof(V))));
};
template <>
struct Shape<float> {
  using scalar = float;
  using bits = uint32_t;
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

// The first n lanes, n < lanes; the others are zero and their memory is not touched.
template <class V>
FASTRNN_INLINE V load_part(const Scalar<V>* p, int64_t n) {
  constexpr int kCount = sizeof(V) / sizeof(Scalar<V>);
  Scalar<V> lane[kCount] = {};
  for (int64_t i = 0; i < n; ++i) lane[i] = p[i];
  return load<V>(lane);
}

template <class V>
FASTRNN_INLINE void store_part(Scalar<V>* p, V v, int64_t n) {
  constexpr int kCount = sizeof(V) / sizeof(Scalar<V>);
  Scalar<V> lane[kCount];
  store<V>(lane, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lane[i];
}

// A line of memory into the second-level cache, to be read, or into the first, to be written. Any
// address is allowed.
FASTRNN_FN void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#endif
}
FASTRNN_FN void prefetch_write([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 1, 3);
#endif
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

// Polynomials in this file were fitted for it with the Remez algorithm: minimal relative error of
// expm1(r) = r + r^2 q(r) on |r| <= ln(2)/2, for float degree 4 in q (error 1.4e-8), for double
// degree 9 (1.9e-17), both below a fifth of a unit in the last place.
template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr int kMantissa = 23;
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440054690583e-4f;
  static constexpr float kMin = -87.0f, kMax = 89.0f;  // exp(89) is inf, exp(-87) normal
  static constexpr float kTanhMax = 20.0f;             // tanh(x) is 1 beyond half of it
  static constexpr float q[] = {0.499999981496f, 0.166665434243f, 0.041667200717f,
                                0.00836654712851f, 0.00138825161538f};
};
template <>
struct Exp<double> {
  static constexpr int kMantissa = 52;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2Hi = 0.693147180369123816490, kLn2Lo = 1.90821492927058770002e-10;
  static constexpr double kMin = -708.0, kMax = 710.0;
  static constexpr double kTanhMax = 40.0;
  static constexpr double q[] = {0.50000000000000051999,     0.16666666666666588971,
                                 0.041666666666576467946,    0.0083333333333897315368,
                                 0.0013888888931667063308,   0.00019841269718713399977,
                                 0.000024801505142769802868, 2.7557407684618090492e-6,
                                 2.7626092799694720393e-7,   2.5053775956831306591e-8};
};

// exp(x) = scale (1 + tail) for kMin <= x <= kMax; a NaN reaches tail.
template <class V>
struct ExpParts {
  V scale, tail;
};
template <class V>
FASTRNN_INLINE ExpParts<V> exp_parts(V x) {
  using T = Scalar<V>;
  using E = Exp<T>;
  const V rounded = x * E::kLog2e + E::kRound;
  const V n = rounded - E::kRound;
  const V r = (x - n * E::kLn2Hi) - n * E::kLn2Lo;
  constexpr int kTerms = sizeof(E::q) / sizeof(T);
  V q = set1<V>(E::q[kTerms - 1]);
  FASTRNN_UNROLL
  for (int i = kTerms - 2; i >= 0; --i) q = q * r + E::q[i];
  // The low bits of `rounded` are n; shifted into the exponent of 1.0 they make 2^n.
  using Bits = typename Shape<V>::bits;
  const Bits scale = (bit_cast<Bits>(rounded) << E::kMantissa) + bit_cast<Bits>(set1<V>(1));
  return {bit_cast<V>(scale), r + r * r * q};
}

// 1 / (1 + exp(-x)). Error at most 3 ULP where the result is a normal number, below that it is
// 0; exactly 0 and 1 at the infinities.
template <class V>
FASTRNN_INLINE V sigmoid(V x) {
  using E = Exp<Scalar<V>>;
  V a = V{} - x;
  a = select(a > E::kMax, set1<V>(E::kMax), a);
  a = select(a < E::kMin, set1<V>(E::kMin), a);
  const ExpParts<V> e = exp_parts(a);
  const V one = set1<V>(1);
  return one / (one + e.scale * (one + e.tail));
}

// expm1(2x) / (expm1(2x) + 2). Error at most 3 ULP; exactly -1 and 1 at the infinities.
template <class V>
FASTRNN_INLINE V tanh(V x) {
  using E = Exp<Scalar<V>>;
  V a = x + x;
  a = select(a > E::kTanhMax, set1<V>(E::kTanhMax), a);
  a = select(a < -E::kTanhMax, set1<V>(-E::kTanhMax), a);
  const ExpParts<V> e = exp_parts(a);
  const V expm1 = e.scale * e.tail + (e.scale - 1);
  return expm1 / (expm1 + 2);
}

#if defined(__GNUC__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTRNN_SHUFFLE 1
#endif
#endif

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

}  // namespace FASTRNN_NAMESPACE
