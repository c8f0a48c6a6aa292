// sigmoid and tanh of activations.h at every float there is, against double: the error that they
// state, the largest that was found, and the exact values beyond the range in which they vary.
//
// Not one of test_*.cpp: it has four thousand million cases, and is compiled for this machine's own
// instruction set with optimization and without sanitizers.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// As the isa_*.cpp have it.
#define FASTRNN_NAMESPACE here
#if defined(__AVX512F__)
#include <immintrin.h>
#define FASTRNN_BYTES 64
#define FASTRNN_FMA _mm512_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm512_fmadd_pd
#define FASTRNN_MIN _mm512_min_ps
#define FASTRNN_MAX _mm512_max_ps
#elif defined(__AVX2__)
#include <immintrin.h>
#define FASTRNN_BYTES 32
#define FASTRNN_FMA _mm256_fmadd_ps
#define FASTRNN_FMA_DOUBLE _mm256_fmadd_pd
#define FASTRNN_MIN _mm256_min_ps
#define FASTRNN_MAX _mm256_max_ps
#else
#define FASTRNN_BYTES 32
#endif
#include "cpu/activations.h"

using namespace here;

namespace {

constexpr double kBound = 3;  // ULP, stated in activations.h
constexpr int kCount = kLanes<float>;
using V = Vec<float>;

struct Worst {
  double sigmoid = 0, tanh = 0;
};

[[noreturn]] void fail(const char* what, float x, float y) {
  std::printf("%s(%.9g) = %.9g\n", what, double(x), double(y));
  std::exit(1);
}

// Distance from the exact value in units in the last place of a float at that value.
double ulps(float y, double exact) {
  const int exponent = std::max(std::ilogb(exact), -126);
  return std::abs(y - exact) * std::ldexp(1.0, 23 - exponent);
}

void check(float x, float s, float t, Worst& worst) {
  const double a = x, tiny = std::ldexp(1.0, -126);
  if (std::isnan(x)) {
    if (!std::isnan(s)) fail("sigmoid", x, s);
    if (!std::isnan(t)) fail("tanh", x, t);
    return;
  }
  // Where the function is its limit in float, or its first terms in double, no other is needed.
  if (std::abs(x) > 128) {
    if (s != (x > 0 ? 1 : 0)) fail("sigmoid", x, s);
    if (t != (x > 0 ? 1 : -1)) fail("tanh", x, t);
    return;
  }
  const bool small = std::abs(x) < 1.0f / 8192;
  const double exact_s = small ? 0.5 + a / 4 : 1 / (1 + std::exp(-a));
  const double exact_t = small ? a - a * a * a / 3 : std::tanh(a);
  if (exact_s > tiny) {
    worst.sigmoid = std::max(worst.sigmoid, ulps(s, exact_s));
    if (!(ulps(s, exact_s) <= kBound)) fail("sigmoid", x, s);
  } else if (!(s >= 0 && s <= tiny)) {
    fail("sigmoid", x, s);
  }
  if (std::abs(exact_t) > tiny) {
    worst.tanh = std::max(worst.tanh, ulps(t, exact_t));
    if (!(ulps(t, exact_t) <= kBound)) fail("tanh", x, t);
  } else if (!(std::abs(t) <= tiny)) {
    fail("tanh", x, t);
  }
}

void run(std::atomic<uint32_t>& next, Worst& worst) {
  constexpr uint32_t kBlocks = 1 << 12, kBlock = 1 << 20;
  for (uint32_t block = next++; block < kBlocks; block = next++)
    for (uint32_t i = 0; i < kBlock; i += kCount) {
      float x[kCount];
      for (int l = 0; l < kCount; ++l) {
        const uint32_t bits = block * kBlock + i + static_cast<uint32_t>(l);
        std::memcpy(&x[l], &bits, sizeof(float));
      }
      const V s = sigmoid(load<V>(x)), t = here::tanh(load<V>(x));
      for (int l = 0; l < kCount; ++l) check(x[l], s[l], t[l], worst);
    }
}

}  // namespace

int main() {
  std::atomic<uint32_t> next{0};
  std::vector<Worst> worst(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (Worst& each : worst) threads.emplace_back([&] { run(next, each); });
  for (std::thread& each : threads) each.join();
  Worst all;
  for (const Worst& each : worst) {
    all.sigmoid = std::max(all.sigmoid, each.sigmoid);
    all.tanh = std::max(all.tanh, each.tanh);
  }
  std::printf("every float: sigmoid within %.3f ULP, tanh within %.3f\n", all.sigmoid, all.tanh);
}
