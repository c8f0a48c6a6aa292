// The functions of a program that cells.h does not need. Errors in units in the last place (ULP);
// denormal numbers count as zero, as everywhere in a task.
#pragma once

#include "cpu/activations.h"

namespace FASTRNN_NAMESPACE {

// exp(x) for finite results, infinity above. Error at most 2 ULP.
template <class V>
FASTRNN_INLINE V exp(V x) {
  using E = Exp<Scalar<V>>;
  const V inside = clamp(x, E::kMin, E::kMax);
  const V rounded = fma(inside, set1<V>(E::kLog2e), set1<V>(E::kRound));
  const ExpParts<V> e = exp_parts<1>(inside);
  // Half of the scale, which alone may be too large, and twice the rest.
  const V value = power_of_2(rounded - 1) * ((1 + e.tail) * 2);
  return select(x < E::kMin, V{}, value);
}
template <class V, int K>
FASTRNN_INLINE Many<V, K> exp(Many<V, K> x) {
  return each_of<K>([&](int k) { return exp(x.v[k]); });
}

// exp(x) - 1. Error at most 3 ULP.
template <class V>
FASTRNN_INLINE V expm1(V x) {
  using E = Exp<Scalar<V>>;
  const ExpParts<V> e = exp_parts<1>(clamp(x, E::kMin, E::kMax - 2));
  return select(x > E::kMax - 2, exp(x), fma(e.scale, e.tail, e.scale - 1));
}

// The terms of log(m) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), s = (m - 1) / (m + 1), that matter for m
// between 1 / sqrt(2) and sqrt(2).
template <class T>
inline constexpr int kLogTerms = sizeof(T) == 4 ? 6 : 11;

// The natural logarithm: -infinity at 0, NaN below. Error at most 3 ULP.
template <class V>
FASTRNN_INLINE V log(V x) {
  using T = Scalar<V>;
  using E = Exp<T>;
  using Bits = typename Shape<V>::bits;
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kBits = E::kMantissa;
  constexpr Word kBias = (Word{1} << (sizeof(T) * 8 - kBits - 2)) - 1;
  const Bits bits = bit_cast<Bits>(x);
  V m = bit_cast<V>((bits & ((Word{1} << kBits) - 1)) | (kBias << kBits));
  // An integer as a float: put into the mantissa of kRound, which is then taken away.
  V n = bit_cast<V>((bits >> kBits) + bit_cast<Bits>(set1<V>(E::kRound))) - (E::kRound + T(kBias));
  const auto large = m > T(1.41421356237309505);
  m = select(large, m * T(0.5), m);
  n = select(large, n + 1, n);
  const V s = (m - 1) / (m + 1), s2 = s * s;
  V q = set1<V>(T(1) / (2 * kLogTerms<T> + 1));
  FASTRNN_UNROLL
  for (int i = kLogTerms<T> - 1; i > 0; --i) q = fma(q, s2, set1<V>(T(1) / (2 * i + 1)));
  const V value = fma(n, set1<V>(E::kLn2Hi), 2 * s + fma(n, set1<V>(E::kLn2Lo), 2 * s * s2 * q));
  const V infinity = set1<V>(__builtin_inff());
  const V outside = select(x < 0, (x - x) / (x - x), select(x == 0, -infinity, x));
  return select((x > 0) & (x < infinity), value, outside);
}

// log(1 + x), also where x is small. Error at most 4 ULP.
template <class V>
FASTRNN_INLINE V log1p(V x) {
  const V u = 1 + x, infinity = set1<V>(__builtin_inff());
  const V value = log(u) * (x / (u - 1));
  return select(u == 1, x, select(u == infinity, u, value));
}

template <class V>
FASTRNN_INLINE V maximum(V a, V b) {
  return select(a != a, a, select(a > b, a, b));
}
template <class V>
FASTRNN_INLINE V minimum(V a, V b) {
  return select(a != a, a, select(a < b, a, b));
}
template <class V>
FASTRNN_INLINE V absolute(V x) {
  using Bits = typename Shape<V>::bits;
  return bit_cast<V>(bit_cast<Bits>(x) & ~bit_cast<Bits>(set1<V>(Scalar<V>(-0.0))));
}

// function(x) lane by lane: for what is rare in a cell.
template <class V, class F>
FASTRNN_INLINE V by_lane(V x, F&& function) {
  using T = Scalar<V>;
  T lane[sizeof(V) / sizeof(T)];
  store<V>(lane, x);
  for (T& each : lane) each = function(each);
  return load<V>(lane);
}

}  // namespace FASTRNN_NAMESPACE
