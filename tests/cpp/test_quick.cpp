// cell.cuh: the gates of a step whose results are rounded to 16 bits, against double.
#define FASTRNN_EMULATED
#include <cmath>
#include <limits>

#include "check.h"
#include "cuda/cell.cuh"

using fastrnn::cuda::Quick;

int main() {
  constexpr double kMost = 0x1p-17;
  double errors[2] = {};
  const auto look = [&](float x) {
    const double wanted[2] = {1 / (1 + std::exp(-static_cast<double>(x))), std::tanh(x)};
    const float actual[2] = {sigmoid(Quick(x)), tanh(Quick(x))};
    for (int k = 0; k < 2; ++k) {
      const double magnitude = std::fabs(wanted[k]), off = std::fabs(actual[k] - wanted[k]);
      // Below 2^-125 it may be zero.
      const double part = magnitude < 0x1p-125 && off <= magnitude ? 0 : off / magnitude;
      errors[k] = std::max(errors[k], part);
    }
  };
  for (float x = 0x1p-40f; x < 100; x *= 1.0009f) look(x), look(-x);
  CHECK(sigmoid(Quick(0)) == 0.5f && tanh(Quick(0)) == 0.f, "of zero");
  CHECK(errors[0] < kMost && errors[1] < kMost, "parts of %g and %g", errors[0], errors[1]);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(sigmoid(Quick(infinity)) == 1.f && sigmoid(Quick(-infinity)) == 0.f, "of infinities");
  CHECK(tanh(Quick(infinity)) == 1.f && tanh(Quick(-infinity)) == -1.f, "of infinities");
  CHECK(std::isnan(sigmoid(Quick(NAN))) && std::isnan(tanh(Quick(NAN))), "of NaN");
  return report("test_quick");
}
