// vec.h on the widest register, which the compiler splits where the machine's are narrower: sigmoid
// and tanh within their stated error over the range of float and double, limits, NaN, partial loads
// and stores, the transposition.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE wide
#define FASTRNN_BYTES 64
#include "cpu/vec.h"

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

int main() {
  constexpr double kBound = 3;  // stated in vec.h
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
  return report("test_vec");
}
