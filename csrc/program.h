// A cell that was traced from a Python function: straight-line code for a machine whose values are
// planes, of one number for each unit of each row. What the planes of a code are, and how they may
// share memory, is said in fastrnn/programs/program.py; cpu/interpreter.h runs it. No torch.
#pragma once

#include <cstdint>

#include "layer.h"

namespace fastrnn {

// X(name): every operation, in the order of fastrnn/programs/bytecode.py.
//   fma a b + c, fms a b - c, fnma c - a b, muladdmul a b + c d, one_minus 1 - a,
//   dsigmoid a b (1 - b), dtanh a (1 - b b), select_xx (a xx b) ? c : d, sum of a row's units,
//   sigmoid_xx and tanh_xx of a + b or of a b + c
// clang-format off
#define FASTRNN_OPS(X)                                                                \
  X(add) X(sub) X(mul) X(div) X(neg) X(fma) X(fms) X(fnma) X(muladdmul) X(one_minus)  \
  X(dsigmoid) X(dtanh) X(copy) X(sigmoid) X(tanh) X(exp) X(expm1) X(log) X(log1p)     \
  X(sqrt) X(abs) X(max) X(min) X(select_lt) X(select_le) X(select_eq) X(sum) X(sin)   \
  X(cos) X(erf) X(floor) X(round) X(sigmoid_add) X(sigmoid_fma) X(tanh_add) X(tanh_fma)
// clang-format on

enum class Op : uint16_t {
#define X(name) name,
  FASTRNN_OPS(X)
#undef X
};

// Operands are numbers of planes: first those that the code is given and gives, then constants,
// then those that hold one number for all units of a row, then temporaries.
struct Instruction {
  static constexpr uint16_t kOnce = 0x100;  // in `op`: its result is one number for all units

  uint16_t op, dst, a, b, c, d;
};

struct Code {
  const Instruction* instructions;
  int64_t length;
  const double* constants;
  int64_t constant_count;
  int64_t planes, row_temps, temps;
  const bool* reads;  // of each plane that it is given or gives, whether it is read
};

struct Program {
  const char* name;
  CellInfo info;
  int64_t output;  // the state that is the output: 0 for h, k for plane k - 1 of c
  bool row_sums;   // whether units of a row meet
  Code forward, backward;
  // Of a step with a second product: its last hidden gates are not products of h, but of v, a
  // plane that `first_forward` makes; and `first_backward` makes their gradients, of which that of
  // v is a product. Both run before the codes above.
  int64_t gates_w = 0;      // hidden gates of v
  int64_t saved_first = 0;  // saved planes that first_forward writes; the first of them is v
  Code first_forward{}, first_backward{};
  Code inference{};  // forward of calls that save nothing
};

}  // namespace fastrnn
