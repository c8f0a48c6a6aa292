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

// A float of a step whose results are rounded to 16 bits. Its gates are made in fewer instructions,
// without a branch, and err by a part of 2^-17 at most.
struct Quick {
  float x;

  FASTRNN_DEVICE Quick(float x = 0) : x(x) {}
  FASTRNN_DEVICE operator float() const { return x; }
  FASTRNN_DEVICE friend Quick operator+(Quick a, Quick b) { return a.x + b.x; }
  FASTRNN_DEVICE friend Quick operator-(Quick a, Quick b) { return a.x - b.x; }
  FASTRNN_DEVICE friend Quick operator*(Quick a, Quick b) { return a.x * b.x; }
  FASTRNN_DEVICE friend Quick operator-(Quick a) { return -a.x; }
  FASTRNN_DEVICE friend bool operator<(Quick a, Quick b) { return a.x < b.x; }
  FASTRNN_DEVICE friend bool operator<=(Quick a, Quick b) { return a.x <= b.x; }
};
FASTRNN_FN Quick fma(Quick a, Quick b, Quick c) { return ::fmaf(a.x, b.x, c.x); }
FASTRNN_FN Quick sigmoid(Quick a) { return quick_reciprocal(1 + quick_exp2(-1.44269504f * a.x)); }
// 1 - 2 / (1 + exp(2 a)); near zero, where that loses digits, a - a^3 / 3.
FASTRNN_FN Quick tanh(Quick a) {
  const float far = ::fmaf(-2, quick_reciprocal(1 + quick_exp2(2.88539008f * a.x)), 1);
  const float near = ::fmaf(a.x * a.x * a.x, -1 / 3.f, a.x);
  return fabsf(a.x) < 0.03125f ? near : far;
}

// What a step of numbers that are stored as T computes with.
template <class T>
using Arithmetic = std::conditional_t<sizeof(T) == 2, Quick, Compute<T>>;

}  // namespace fastrnn::cuda

#include "cells.h"
