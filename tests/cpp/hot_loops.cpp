// The micro-kernels of 64-bit ARM alone, for hot_loops.py: of float and double, with the dot
// products of a single row, of pairs of Bf16, or of small weights.
#if defined(FASTRNN_SMALL)
#include "cpu/isa_neondot.cpp"
#else
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_NAMESPACE neon
#if defined(FASTRNN_PAIRS)
#include "cpu/neonbf16.h"
#else
#include "cpu/neon.h"
#endif
#include "cpu/few_steps.h"

namespace FASTRNN_NAMESPACE {

template <class O>
struct Used {
  const Micros<O, 4> wide = kMicros<O, 4>;
  const Micros<O, 3> gru = kMicros<O, 3>;
  const Micros<O, 2> narrow = kMicros<O, 2>;
  Micro<O>* columns = micro<O, kNarrow, kTileRows<O, kNarrow>, true>;
  decltype(lane_row<O, 4, 4>)*four = lane_row<O, 4, 4>, *three = lane_row<O, 3, 4>;
};
#if defined(FASTRNN_PAIRS)
Used<Bf16> bf16;
#else
Used<float> of_float;
Used<double> of_double;
template <class T>
struct UsedDots {
  decltype(dots<T, 1, false, T, T>)* together = dots<T, 1, false, T, T>;
  decltype(dots<T, 1, true, T, T>)* apart = dots<T, 1, true, T, T>;
};
UsedDots<float> dots_of_float;
UsedDots<double> dots_of_double;
#endif

}  // namespace FASTRNN_NAMESPACE
#if defined(FASTRNN_PAIRS) && defined(__clang__)
#pragma clang attribute pop
#endif
#endif
