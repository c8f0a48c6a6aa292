// What a layer is to a kernel: plain sizes and pointers, no torch. One layer, all its directions,
// over all time steps.
//
// T time steps, N batch, I input size, H hidden size, P size of h (the projection's, or H),
// D directions, G gates and S saved planes of the cell (cells.h).
// Rows: step t owns the rows offset[t] ... offset[t] + active[t] of every [rows, ...] matrix, its
// batch entries 0 ... active[t]. Padded input has active[t] = N and rows = T N; packed input has
// active[t] non-increasing. All matrices are dense and row-major; weights and states are never
// modified; outputs never overlap inputs.
#pragma once

#include <cstdint>

namespace fastrnn {

// Runs body(i, context) for every i in [0, n) on up to `threads` threads.
struct Parallel {
  int64_t threads;
  void (*run)(int64_t n, void (*body)(int64_t i, void* context), void* context);
};

struct Sizes {
  int64_t steps, batch, input, hidden, state, directions, rows;  // T N I H P D rows
  bool projected;         // P comes from w_hr; otherwise P = H
  const int64_t* active;  // [T]
  const int64_t* offset;  // [T]
};

template <class T>
struct Weights {
  const T* w_ih;  // [G H, I]
  const T* w_hh;  // [G H, P]
  const T* b_ih;  // [G H] or null
  const T* b_hh;  // [G H] or null
  const T* w_hr;  // [P, H] or null
};

template <class T>
struct Forward {
  Sizes size;
  Weights<T> weights[2];  // per direction
  const T* x;             // [rows, I]
  const T* h0;            // [D, N, P]
  const T* c0;            // [D, N, H] or null
  T* y;                   // [rows, D P]
  T* h_n;                 // [D, N, P]
  T* c_n;                 // [D, N, H] or null
  bool save;              // whether the three below are written, for backward
  T* gates;               // [D, rows, S, H]
  T* cells;               // [D, rows, H] or null
  T* hidden;              // [D, rows, H] o tanh(c) before the projection, or null
};

template <class T>
struct Backward {
  Forward<T> forward;  // inputs and results of the forward call; h_n and c_n are not read
  const T* dy;         // [rows, D P] or null, which means zero
  const T* dh_n;       // [D, N, P] or null
  const T* dc_n;       // [D, N, H] or null
  T* dx;               // [rows, I] or null, which means not wanted
  T* dh0;              // [D, N, P] or null
  T* dc0;              // [D, N, H] or null
  struct {
    T *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;  // as Weights
  } dweights[2];
  bool need_weights;
};

template <class T>
using ForwardKernel = void(const Forward<T>&, const Parallel&);
template <class T>
using BackwardKernel = void(const Backward<T>&, const Parallel&);

// The kernels of one instruction set, by position in the list of cells.
struct Kernels {
  const char* name;
  ForwardKernel<float>* forward_float[8];
  ForwardKernel<double>* forward_double[8];
  BackwardKernel<float>* backward_float[8];
  BackwardKernel<double>* backward_double[8];
};

}  // namespace fastrnn
