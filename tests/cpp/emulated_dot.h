// Streams of small weights with an emulated product of bytes, for test_small_weights.cpp. The
// including file defines FASTRNN_NAMESPACE, the registers, and Activation, int8_t or uint8_t.
#include "cpu/before_target.h"

#define FASTRNN_DOT(sum, a, b) dot<Activation>(sum, a, b)

namespace FASTRNN_NAMESPACE {

template <class Byte, class V>
V dot(V sum, V activations, V weights) {
  Byte a[sizeof(V)];
  int8_t b[sizeof(V)];
  memcpy(a, &activations, sizeof(V));
  memcpy(b, &weights, sizeof(V));
  for (size_t i = 0; i < sizeof(V); ++i) sum[i / 4] += a[i] * b[i];
  return sum;
}

}  // namespace FASTRNN_NAMESPACE

#include "cpu/table_small.h"
