// vec.h, activations.h and operands.h on the widest register, which the compiler splits where the
// machine's are narrower: sigmoid and tanh within their stated error over the range of float and
// double, limits, NaN, partial loads and stores, the transposition; Bf16 and F16: every one of
// them, rounding to it; products of pairs.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE wide
#define FASTRNN_BYTES 64
#include "cpu/activations.h"
#include "cpu/operands.h"

using namespace wide;

// Distance of y from the exact value in units in the last place of T at that value.
template <class T>
double ulps(T y, long double exact) {
  const T nearest = std::abs(static_cast<T>(exact));
  const T unit = std::nextafter(nearest, std::numeric_limits<T>::infinity()) - nearest;
  return static_cast<double>(std::abs(static_cast<long double>(y) - exact) / unit);
}

template <class T>
void within_bound(const T* x, double bound) {
  using V = Vec<T>;
  const V s = sigmoid(load<V>(x)), t = wide::tanh(load<V>(x));
  for (int l = 0; l < kLanes<T>; ++l) {
    if (std::isnan(x[l])) {
      CHECK(std::isnan(s[l]) && std::isnan(t[l]), "NaN lost");
      continue;
    }
    const long double exact_s = 1 / (1 + std::exp(-static_cast<long double>(x[l])));
    const long double exact_t = std::tanh(static_cast<long double>(x[l]));
    const long double normal = std::numeric_limits<T>::min();
    if (exact_s > normal) {
      CHECK(ulps<T>(s[l], exact_s) < bound, "sigmoid(%.9g) = %.9g", double(x[l]), double(s[l]));
    } else {
      CHECK(s[l] >= 0 && s[l] <= normal, "sigmoid(%.9g) = %.9g", double(x[l]), double(s[l]));
    }
    if (std::abs(exact_t) > normal)
      CHECK(ulps<T>(t[l], exact_t) < bound, "tanh(%.9g) = %.9g", double(x[l]), double(t[l]));
  }
}

template <class T>
void limits() {
  const T inf = std::numeric_limits<T>::infinity();
  CHECK(sigmoid(inf) == 1 && sigmoid(-inf) == 0, "sigmoid at infinity");
  CHECK(wide::tanh(inf) == 1 && wide::tanh(-inf) == -1, "tanh at infinity");
  CHECK(sigmoid(T(0)) == T(0.5) && wide::tanh(T(0)) == 0, "at zero");
  CHECK(std::isnan(sigmoid(std::numeric_limits<T>::quiet_NaN())), "scalar NaN");
  CHECK(set1<Vec<T>>(T(-0.0))[0] == 0 && std::signbit(set1<Vec<T>>(T(-0.0))[0]), "sign of zero");
}

template <class T>
void parts_and_blocks() {
  constexpr int kCount = kLanes<T>;
  T from[kCount * kCount];
  for (int i = 0; i < kCount * kCount; ++i) from[i] = static_cast<T>(i);
  Vec<T> block[kCount];
  for (int i = 0; i < kCount; ++i) block[i] = load<Vec<T>>(from + i * kCount);
  transpose<T>(block);
  for (int i = 0; i < kCount; ++i)
    for (int l = 0; l < kCount; ++l) CHECK(block[i][l] == from[l * kCount + i], "%d %d", i, l);

  for (int n = 0; n < kCount; ++n) {
    // Exactly n long: the address sanitizer sees a touch beyond.
    std::vector<T> in(from + 1, from + 1 + n), out(n, T(-1));
    const Vec<T> v = load_part<Vec<T>>(in.data(), n);
    store_part<Vec<T>>(out.data(), v, n);
    for (int l = 0; l < kCount; ++l) CHECK(v[l] == (l < n ? in[l] : 0), "part %d lane %d", n, l);
    CHECK(out == in, "part %d", n);
  }
}

// The Bf16 nearest to x by its definition: of the two neighbours the nearer, of two the even one.
// What comes after the largest is 2^128.
uint16_t nearest_bits(float x) {
  const auto value = [](uint32_t upper) {
    const int exponent = static_cast<int>(upper >> 7 & 0xff), fraction = upper & 0x7f;
    return exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(128 + fraction, exponent - 134);
  };
  const uint32_t low = bit_cast<uint32_t>(x) >> 16;
  if (std::isinf(x)) return static_cast<uint16_t>(low);
  const double below = std::abs(double{x}) - value(low),
               above = value(low + 1) - std::abs(double{x});
  return static_cast<uint16_t>(below < above || (below == above && low % 2 == 0) ? low : low + 1);
}

void stores_nearest(const float* x) {
  using V = Vec<float>;
  constexpr int kCount = kLanes<float>;
  Bf16 rounded[kCount];
  store<V>(rounded, load<V>(x));
  for (int l = 0; l < kCount; ++l) {
    Bf16 one;
    store<float>(&one, x[l]);
    CHECK(one.bits == rounded[l].bits, "scalar of %.9g", x[l]);
    if (std::isnan(x[l])) {
      CHECK(std::isnan(load<float>(&one)), "NaN %08x lost", bit_cast<uint32_t>(x[l]));
    } else {
      CHECK(one.bits == nearest_bits(x[l]), "%.9g becomes %04x", x[l], one.bits);
    }
  }
}

void bf16() {
  using V = Vec<float>;
  constexpr int kCount = kLanes<float>;
  for (uint32_t bits = 0; bits < 1 << 16; bits += kCount) {
    Bf16 from[kCount], to[kCount];
    for (int l = 0; l < kCount; ++l) from[l].bits = static_cast<uint16_t>(bits + l);
    const V v = load<V>(from);
    store<V>(to, v);
    for (int l = 0; l < kCount; ++l) {
      const uint32_t upper = (bits + l) << 16;
      CHECK(bit_cast<uint32_t>(float(v[l])) == upper, "load of %04x", bits + l);
      CHECK(bit_cast<uint32_t>(load<float>(from + l)) == upper, "scalar load of %04x", bits + l);
      const bool same = to[l].bits == (std::isnan(v[l]) ? from[l].bits | 0x40 : from[l].bits);
      CHECK(same, "%04x comes back as %04x", bits + l, to[l].bits);
      // What lies between it and the next one: the ends, the middle, and beside the middle.
      const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
      float x[kCount] = {};
      for (int i = 0; i < 6; ++i) x[i] = bit_cast<float>(upper | lower[i]);
      stores_nearest(x);
    }
  }
  for (uint64_t pattern = 0; pattern < (uint64_t{1} << 32); pattern += kCount * 997) {
    float x[kCount];
    for (int l = 0; l < kCount; ++l)
      x[l] = bit_cast<float>(static_cast<uint32_t>(pattern + l * 997));
    stores_nearest(x);
  }

  for (int n = 0; n < kCount; ++n) {
    std::vector<Bf16> in(n), out(n);
    for (int l = 0; l < n; ++l) in[l].bits = static_cast<uint16_t>(0x3f80 + l);
    const V v = load_part<V>(in.data(), n);
    store_part<V>(out.data(), v, n);
    for (int l = 0; l < kCount; ++l)
      CHECK(v[l] == (l < n ? load<float>(&in[l]) : 0), "part %d lane %d", n, l);
    for (int l = 0; l < n; ++l) CHECK(out[l].bits == in[l].bits, "part %d lane %d", n, l);
  }
}

// A register of pairs from two rows, and its products with one broadcast pair, which are exact.
void pairs_of_bf16() {
  using V = Vec<float>;
  constexpr int kCount = kLanes<float>;
  Bf16 first[kCount], second[kCount], left[2], stored[2 * kCount];
  V a = load<V>(uniform_vector<float>(kCount).data()),
    b = load<V>(uniform_vector<float>(kCount).data());
  store<V>(first, a);
  store<V>(second, b);
  a = load<V>(first);
  b = load<V>(second);
  for (Bf16& x : left) store<float>(&x, uniform<float>());
  const Operands<Bf16> interleaved = pairs(first, second);
  store_operands<Bf16>(stored, interleaved);
  V sum{};
  multiply_add<Bf16>(sum, broadcast<Bf16>(left), load_operands<Bf16>(stored));
  for (int l = 0; l < kCount; ++l) {
    CHECK(stored[2 * l].bits == first[l].bits && stored[2 * l + 1].bits == second[l].bits, "%d", l);
    const double exact = double{load<float>(left)} * a[l] + double{load<float>(left + 1)} * b[l];
    CHECK(std::abs(sum[l] - exact) <= 1e-7, "lane %d: %.9g, expected %.9g", l, sum[l], exact);
  }
}

// Every F16 as a number, and back; and the floats about the middle of two that follow each other.
void halves() {
  using V = Vec<float>;
  constexpr int kCount = kLanes<float>;
  const auto number = [](int bits) {  // what comes after the largest is 2^16
    const int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    const double size =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return static_cast<float>(bits & 0x8000 ? -size : size);
  };
  const auto stored = [](float x) {
    F16 one, all[kCount];
    store<float>(&one, x);
    store<V>(all, set1<V>(x));
    for (const F16& each : all) CHECK(each.bits == one.bits, "%g by lane and alone", x);
    return one.bits;
  };
  for (int bits = 0; bits < 1 << 16; ++bits) {
    F16 from[kCount];
    for (F16& each : from) each.bits = static_cast<uint16_t>(bits);
    const float x = load<float>(from), all = load<V>(from)[bits % kCount];
    const bool beyond = (bits & 0x7c00) == 0x7c00;
    if (beyond && bits & 0x3ff) {
      CHECK(std::isnan(x) && std::isnan(all), "%04x is a NaN", bits);
      CHECK((stored(x) & 0x7c00) == 0x7c00 && stored(x) & 0x3ff, "NaN %04x lost", bits);
      continue;
    }
    const float want = beyond ? std::copysign(INFINITY, bits & 0x8000 ? -1.f : 1.f) : number(bits);
    CHECK(bit_cast<uint32_t>(x) == bit_cast<uint32_t>(want) && x == all, "%04x is %g", bits, x);
    CHECK(stored(x) == bits, "%g becomes %04x", x, stored(x));
    if (beyond) continue;
    const float middle = (want + number(bits + 1)) / 2;  // exact
    CHECK(stored(middle) == bits + (bits & 1), "%g becomes %04x", middle, stored(middle));
    const float less = std::nextafter(middle, 0.f), more = std::nextafter(middle, 2 * middle);
    CHECK(stored(less) == bits && stored(more) == bits + 1, "about %g", middle);
  }
  CHECK(stored(1e30f) == 0x7c00 && stored(-1e30f) == 0xfc00, "beyond all");
  CHECK(stored(0x1p-26f) == 0 && stored(-0x1p-140f) == 0x8000, "below all");
}

int main() {
  halves();
  constexpr double kBound = 3;  // stated in activations.h
  for (uint64_t pattern = 0; pattern < (uint64_t{1} << 32); pattern += 16 * 997) {
    float x[16];
    for (int l = 0; l < 16; ++l) {
      const uint32_t bits = static_cast<uint32_t>(pattern + l * 997);
      std::memcpy(&x[l], &bits, sizeof(float));
    }
    within_bound(x, kBound);
  }
  for (int trial = 0; trial < 40000; ++trial) {
    double x[8];
    for (double& a : x) a = std::ldexp(uniform(), static_cast<int>(uniform(-30, 11)));
    within_bound(x, kBound);
  }
  limits<float>();
  limits<double>();
  parts_and_blocks<float>();
  parts_and_blocks<double>();
  bf16();
  pairs_of_bf16();
  return report("test_vec");
}
