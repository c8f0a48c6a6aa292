// The cells of cells.h on the device.
#pragma once

#include <cmath>

#include "cuda/device.cuh"

#define FASTRNN_NAMESPACE fastrnn::cuda
#define FASTRNN_FN static FASTRNN_DEVICE

namespace fastrnn::cuda {

template <class V>
FASTRNN_FN V select(bool mask, V yes, V no) {
  return mask ? yes : no;
}

// a b + c, rounded once.
FASTRNN_FN float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTRNN_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }

// a / b, within 2 ULP for float; 0 where b is above 2^126.
FASTRNN_FN float divide(float a, float b) {
#if defined(FASTRNN_EMULATED)
  return a / b;
#else
  return __fdividef(a, b);
#endif
}
FASTRNN_FN double divide(double a, double b) { return a / b; }

// 1 / (1 + exp(-x)). Error at most 4 ULP in float, 2 in double, where the result is above 2^-126;
// below that 0. Exactly 0 and 1 at the infinities.
FASTRNN_FN float sigmoid(float x) { return divide(1, 1 + expf(-x)); }
FASTRNN_FN double sigmoid(double x) { return divide(1, 1 + exp(-x)); }

// Error at most 2 ULP.
FASTRNN_FN float tanh(float x) { return tanhf(x); }
FASTRNN_FN double tanh(double x) { return ::tanh(x); }

}  // namespace fastrnn::cuda

#include "cells.h"
