// sigmoid and tanh of a register, a scalar or several of them, with their error.
#pragma once

#include "cpu/vec.h"

namespace FASTRNN_NAMESPACE {

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

// 2^n from the number that adding kRound to n gives: its low bits are n; shifted into the exponent
// of 1.0 they make the power.
template <class V>
FASTRNN_INLINE V power_of_2(V rounded) {
  using Bits = typename Shape<V>::bits;
  return bit_cast<V>((bit_cast<Bits>(rounded) << Exp<Scalar<V>>::kMantissa) +
                     bit_cast<Bits>(set1<V>(1)));
}
template <class V, int K>
FASTRNN_INLINE Many<V, K> power_of_2(Many<V, K> rounded) {
  return each_of<K>([&](int k) { return power_of_2(rounded.v[k]); });
}

// exp(Sign x) = scale (1 + Sign tail) for kMin <= Sign x <= kMax; a NaN reaches tail. All constants
// take the sign: to negate x would be an instruction more.
template <class V>
struct ExpParts {
  V scale, tail;
};
template <int Sign, class V>
FASTRNN_INLINE ExpParts<V> exp_parts(V x) {
  using T = Scalar<V>;
  using E = Exp<T>;
  const V rounded = fma(x, set1<V>(Sign * E::kLog2e), set1<V>(E::kRound));
  const V n = rounded - E::kRound;
  const V r = fma(n, set1<V>(-Sign * E::kLn2Lo), fma(n, set1<V>(-Sign * E::kLn2Hi), x));
  constexpr int kTerms = sizeof(E::q) / sizeof(T);
  const auto coefficient = [](int i) { return i % 2 ? E::q[i] : Sign * E::q[i]; };
  V q = set1<V>(coefficient(kTerms - 1));
  FASTRNN_UNROLL
  for (int i = kTerms - 2; i >= 0; --i) q = fma(q, r, set1<V>(coefficient(i)));
  return {power_of_2(rounded), fma(r * r, q, r)};
}

// 1 / (1 + exp(-x)). Error at most 3 ULP where the result is a normal number, below that it is
// 0; exactly 0 and 1 at the infinities.
template <class V>
FASTRNN_INLINE V sigmoid(V x) {
  using E = Exp<Scalar<V>>;
  const ExpParts<V> e = exp_parts<-1>(clamp(x, -E::kMax, -E::kMin));
  const V one = set1<V>(1);
  return one / fma(e.scale, one - e.tail, one);
}

// expm1(2x) / (expm1(2x) + 2). Error at most 3 ULP; exactly -1 and 1 at the infinities.
template <class V>
FASTRNN_INLINE V tanh(V x) {
  using E = Exp<Scalar<V>>;
  const ExpParts<V> e = exp_parts<1>(clamp(x + x, -E::kTanhMax, E::kTanhMax));
  const V expm1 = fma(e.scale, e.tail, e.scale - 1);
  return expm1 / (expm1 + 2);
}

}  // namespace FASTRNN_NAMESPACE
