// What a layer is to a kernel: plain sizes and pointers, no torch. One layer, all its directions,
// over all time steps.
//
// T time steps, N batch, I input size, H hidden size, P size of h (the projection's, or H),
// D directions, G gates and S saved planes of the cell (cells.h). C numbers of c: H, or those of
// several planes, one after the other, of a cell that is a program (program.h), whose w_ih and w_hh
// may have different numbers of gates.
// Rows: step t has active[t] rows, the batch entries 0 ... active[t], which never increase with t;
// counted from the first step on they begin at offset[t]. Row r of them is row place[r] of every
// [rows, ...] matrix, and n stands for entry order[n] of the states; where there is no place or no
// order the two are the same. Padded input has active[t] = N and packed input its batch sizes;
// padded input with lengths has its entries ordered by length, and rows of the matrices that belong
// to no step: these are never read, and written as zero.
// All matrices are dense and row-major; weights and states are never modified; outputs never
// overlap inputs.
#pragma once

#include <cstdint>

namespace fastrnn {

struct Program;

// A cell as a name says it, from the list in cells.h or of a program.
struct CellInfo {
  const char* name;
  int64_t gates, saved;
  char keeps;            // what a unit keeps for itself from step to step: 'c', 'h' or 0
  bool split;            // whether the gradients of its input part and of its hidden part differ
  int64_t hidden_gates;  // of w_hh
  int64_t own;           // planes of c
  int64_t params;        // numbers of a unit that are neither weights of products nor states
  const Program* program = nullptr;
};
int cell_count();
const CellInfo& cell_at(int position);
// Its position in the list, that of all programs, which is cell_count(), or -1.
int find_cell(const char* name, CellInfo& info);

// A bfloat16 in memory: the upper half of a float's bits. Arithmetic on them is float's.
struct Bf16 {
  uint16_t bits;
};
// One of 11 bits of mantissa and 5 of exponent, IEEE's half.
struct F16 {
  uint16_t bits;
};

// Runs body(i, context) for every i in [0, n) on up to `threads` threads.
struct Parallel {
  int64_t threads;
  void (*run)(int64_t n, void (*body)(int64_t i, void* context), void* context);
};

struct Sizes {
  int64_t steps, batch, input, hidden, state, directions;  // T N I H P D
  int64_t rows;                                            // of the matrices
  bool projected;                                          // P comes from w_hr; otherwise P = H
  const int64_t* active;                                   // [T]
  const int64_t* offset;                                   // [T]
  const int64_t* place;                                    // [sum of active] or null
  const int64_t* order;                                    // [N] or null
  int64_t cell = 0;                                        // C
  int64_t heads = 1;  // of a program: parts of the units, each of which sees its own part of h
};

// What a parameter of a program has a number for.
enum class Form : uint8_t {
  kUnit,  // [H]: each unit
  kRow,   // [rows]: each row
  kEach   // [rows, H]
};
inline constexpr int kMostParams = 16;
// The units of a head are a multiple of this: then no register holds units of two.
inline constexpr int64_t kHeadUnits = 64;

// The weights of a direction, or the gradients of them.
template <class T>
struct Weights {
  T* w_ih;  // [G H, I]
  T* w_hh;  // [G H, P], or [G H, P / heads]
  T* b_ih;  // [G H] or null
  T* b_hh;  // [G H] or null
  T* w_hr;  // [P, H] or null
  T* params[kMostParams] = {};
};

template <class T>
struct Forward {
  Sizes size;
  Weights<const T> weights[2];  // per direction
  const T* x;                   // [rows, I]
  const T* h0;                  // [D, N, P]
  const T* c0;                  // [D, N, C] or null
  const bool* reset;  // [rows] or null: whether the state is zeroed before that row's step
  T* y;               // [rows, D P]
  T* h_n;             // [D, N, P]
  T* c_n;             // [D, N, C] or null
  bool save;          // whether the three below are written, for backward
  T* gates;           // [D, rows, S, H]
  T* cells;           // [D, rows, C] or null
  T* hidden;          // [D, rows, H] h before the projection, or where h is not the output, or null
  const Program* program = nullptr;
  Form forms[kMostParams] = {};  // of its parameters
  int parts = 3;                 // of each float, 1 to 3, that products of parts use (cpu/parts.h)
};

template <class T>
struct Backward {
  Forward<T> forward;  // inputs and results of the forward call; h_n and c_n are not read
  const T* dy;         // [rows, D P] or null, which means zero
  const T* dh_n;       // [D, N, P] or null
  const T* dc_n;       // [D, N, C] or null
  const T* dcells;     // [D, rows, C] or null: gradient of c_t from outside the layer
  const T* dhidden;    // [D, rows, H] or null: of h_t, where a program has another output
  T* dx;               // [rows, I] or null, which means not wanted
  T* dh0;              // [D, N, P] or null
  T* dc0;              // [D, N, C] or null
  Weights<T> dweights[2];
  bool need_weights;
  bool of_rows;          // weight gradients of each batch row by itself, [N, ...]: T is the type of
                         // the sums, every row takes part in every step, and the cell is built in
  int64_t detach_every;  // the gradient of a state does not go from step t = k detach_every to
                         // t - 1, k > 0, nor back in the reverse direction; 0 for never
  double grad_clip;      // bound of what each step sends back to h_{t-1}; 0 for none
};

// A layer that goes on for ever, with weights packed once. `steps` takes so many steps: it reads x
// [count, rows, input] and writes y [count, rows, state] of the Forward that the stream was made
// of, whose size has one step; y may be x. It reads h0 and c0 and writes h_n and c_n; where h_n is
// h0 and c_n is c0, the state goes on in place.
struct Stream {
  virtual ~Stream() = default;
  virtual void steps(int64_t count) = 0;
};

// How a weight of such a stream may lie in memory.
enum class Format : uint8_t { kFloat, kBf16, kF16, kInt8 };
struct SmallWeight {
  const void* data;    // [rows, columns], or null; no half is infinite or NaN, no int8 is -128
  const float* scale;  // [rows] of int8: what 1 stands for in each row; else null
  Format format;
};
struct SmallWeights {
  SmallWeight w_ih, w_hh, w_hr;
  bool wide;  // activations that meet int8 are int16, not int8
};

template <class T>
using ForwardKernel = void(const Forward<T>&, const Parallel&);
template <class T>
using BackwardKernel = void(const Backward<T>&, const Parallel&);
// The Forward must outlive the stream; its weights need not.
template <class T>
using StreamKernel = Stream*(const Forward<T>&);
// Of the Forward's weights it reads the biases.
using SmallStreamKernel = Stream*(const Forward<float>&, const SmallWeights&);

// One step of halves, of few rows: whether it is that, and was made.
using HalfStepKernel = bool(const Forward<F16>&, const Parallel&);

// Kernels of float whose products are of parts (cpu/parts.h). They return whether their results
// stand: not where that is no way for the layer, nor where a number is infinite or NaN, or was on
// the way.
using ForwardInParts = bool(const Forward<float>&, const Parallel&);
using BackwardInParts = bool(const Backward<float>&, const Parallel&);

// The kernels of one instruction set, by position in the list of cells; those of programs follow.
struct Kernels {
  const char* name;
  ForwardKernel<float>* forward_float[8];
  ForwardKernel<double>* forward_double[8];
  ForwardKernel<Bf16>* forward_bf16[8];
  BackwardKernel<float>* backward_float[8];
  BackwardKernel<double>* backward_double[8];
  BackwardKernel<Bf16>* backward_bf16[8];
  StreamKernel<float>* stream_float[8];
  StreamKernel<double>* stream_double[8];
  SmallStreamKernel* small_stream[8];        // null of programs
  HalfStepKernel* half_step[8];              // null of programs
  ForwardInParts* forward_in_parts[8] = {};  // null of programs, and where they gain nothing
  BackwardInParts* backward_in_parts[8] = {};
};

}  // namespace fastrnn
