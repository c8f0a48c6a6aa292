// Cells of cells.h as programs, written by hand: what a traced function becomes.
#pragma once

#include <type_traits>
#include <vector>

#include "program.h"

struct CodeByHand {
  int64_t planes = 0;
  std::vector<fastrnn::Instruction> instructions;
  int64_t temps = 0;
  // Of each plane that is given, whether it is read; null for all.
  const bool* reads = nullptr;

  // After the planes there is one constant, zero.
  fastrnn::Code code() const {
    static const bool all[32] = {true, true, true, true, true, true, true, true,
                                 true, true, true, true, true, true, true, true};
    static const double zero = 0;
    return {
        instructions.data(), static_cast<int64_t>(instructions.size()), &zero, 1, planes, 0, temps,
        reads ? reads : all};
  }
};

struct ProgramByHand {
  const CodeByHand forward, backward, first_forward, first_backward;
  fastrnn::Program program;

  ProgramByHand(fastrnn::CellInfo info, CodeByHand f, CodeByHand b, int64_t gates_w = 0,
                int64_t saved_first = 0, CodeByHand first_f = {}, CodeByHand first_b = {})
      : forward(std::move(f)),
        backward(std::move(b)),
        first_forward(std::move(first_f)),
        first_backward(std::move(first_b)),
        program{info.name,
                info,
                0,
                false,
                forward.code(),
                backward.code(),
                gates_w,
                saved_first,
                first_forward.code(),
                first_backward.code(),
                forward.code()} {
    program.info.program = &program;
  }
  ProgramByHand(const ProgramByHand&) = delete;
};

constexpr uint16_t op(fastrnn::Op op) { return static_cast<uint16_t>(op); }

// The program of a cell, with the same saved planes, or null.
template <class Cell>
const fastrnn::Program* program_of() {
  using fastrnn::Op;
  if constexpr (std::is_same_v<Cell, emulated::Lstm>) {
    // Given: gates i f g o, h, c; made: h, c and the activated gates.
    static const bool reads[16] = {true, true, true, true, false, true, false, true, true, true};
    static const ProgramByHand lstm(
        {.name = "lstm by hand",
         .gates = 4,
         .saved = 4,
         .keeps = 'c',
         .split = false,
         .hidden_gates = 4,
         .own = 1,
         .params = 0},
        {12,
         {{op(Op::sigmoid), 8, 0, 0, 0, 0},
          {op(Op::sigmoid), 9, 1, 0, 0, 0},
          {op(Op::tanh), 10, 2, 0, 0, 0},
          {op(Op::sigmoid), 11, 3, 0, 0, 0},
          {op(Op::muladdmul), 7, 9, 5, 8, 10},
          {op(Op::tanh), 13, 7, 0, 0, 0},
          {op(Op::mul), 6, 11, 13, 0, 0}},
         2},
        // Given: i f g o, h and c before, h and c, their gradients; made: those of gates, h and c.
        {16,
         {{op(Op::tanh), 17, 7, 0, 0, 0},
          {op(Op::mul), 18, 8, 3, 0, 0},
          {op(Op::dtanh), 18, 18, 17, 0, 0},
          {op(Op::add), 18, 9, 18, 0, 0},
          {op(Op::mul), 17, 8, 17, 0, 0},
          {op(Op::dsigmoid), 13, 17, 3, 0, 0},
          {op(Op::mul), 17, 18, 2, 0, 0},
          {op(Op::dsigmoid), 10, 17, 0, 0, 0},
          {op(Op::mul), 17, 18, 5, 0, 0},
          {op(Op::dsigmoid), 11, 17, 1, 0, 0},
          {op(Op::mul), 17, 18, 0, 0, 0},
          {op(Op::dtanh), 12, 17, 2, 0, 0},
          {op(Op::mul), 15, 18, 1, 0, 0},
          {op(Op::copy), 14, 16, 0, 0, 0}},
         2,
         reads});
    return &lstm.program;
  } else if constexpr (std::is_same_v<Cell, emulated::Gru>) {
    // Given: r z n of x, r z n of u, h; made: h, and r, z, n and n of u.
    static const bool reads[14] = {true, true, true, true, true, false, true};
    static const ProgramByHand gru(
        {.name = "gru by hand",
         .gates = 3,
         .saved = 4,
         .keeps = '\0',
         .split = true,
         .hidden_gates = 3,
         .own = 0,
         .params = 0},
        {12,
         {{op(Op::add), 8, 0, 3, 0, 0},
          {op(Op::sigmoid), 8, 8, 0, 0, 0},
          {op(Op::add), 9, 1, 4, 0, 0},
          {op(Op::sigmoid), 9, 9, 0, 0, 0},
          {op(Op::fma), 10, 8, 5, 2, 0},
          {op(Op::tanh), 10, 10, 0, 0, 0},
          {op(Op::copy), 11, 5, 0, 0, 0},
          {op(Op::sub), 13, 6, 10, 0, 0},
          {op(Op::fma), 7, 9, 13, 10, 0}},
         1},
        // Given: what was saved, h before, h, its gradient; made: those of x, of u, of h before.
        {14,
         {{op(Op::one_minus), 15, 1, 0, 0, 0},
          {op(Op::mul), 15, 6, 15, 0, 0},
          {op(Op::dtanh), 9, 15, 2, 0, 0},
          {op(Op::mul), 15, 9, 3, 0, 0},
          {op(Op::dsigmoid), 7, 15, 0, 0, 0},
          {op(Op::copy), 10, 7, 0, 0, 0},
          {op(Op::sub), 15, 4, 2, 0, 0},
          {op(Op::mul), 15, 6, 15, 0, 0},
          {op(Op::dsigmoid), 8, 15, 1, 0, 0},
          {op(Op::copy), 11, 8, 0, 0, 0},
          {op(Op::mul), 12, 9, 0, 0, 0},
          {op(Op::mul), 13, 6, 1, 0, 0}},
         1,
         reads});
    return &gru.program;
  } else {
    return nullptr;
  }
}

// An LSTM whose gates g and o are a second product, of h again; or null. It saves h, i, f, g, o.
template <class Cell>
const fastrnn::Program* two_products_of() {
  using fastrnn::Op;
  if constexpr (std::is_same_v<Cell, emulated::Lstm>) {
    static const bool first[11] = {false, true,  false, true, true, false,
                                   false, false, true,  true, true};
    static const bool second[12] = {false, true,  true, true, true, false,
                                    true,  false, true, true, true, true};
    static const ProgramByHand lstm(
        {.name = "lstm by two products",
         .gates = 4,
         .saved = 5,
         .keeps = 'c',
         .split = true,
         .hidden_gates = 4,
         .own = 1,
         .params = 0},
        // Given: i f g o of x, i f of u, g o of w, h, c; made: h, c, g, o.
        {14,
         {{op(Op::add), 15, 0, 4, 0, 0},
          {op(Op::sigmoid), 15, 15, 0, 0, 0},
          {op(Op::add), 16, 1, 5, 0, 0},
          {op(Op::sigmoid), 16, 16, 0, 0, 0},
          {op(Op::add), 12, 2, 6, 0, 0},
          {op(Op::tanh), 12, 12, 0, 0, 0},
          {op(Op::muladdmul), 11, 16, 9, 15, 12},
          {op(Op::add), 13, 3, 7, 0, 0},
          {op(Op::sigmoid), 13, 13, 0, 0, 0},
          {op(Op::tanh), 15, 11, 0, 0, 0},
          {op(Op::mul), 10, 13, 15, 0, 0}},
         2},
        // Given: h i f g o, h and c before, h and c, their gradients, that of the operand; made:
        // those of i f g o of x, i f of u, h and c before.
        {20,
         {{op(Op::tanh), 21, 8, 0, 0, 0},
          {op(Op::mul), 22, 9, 4, 0, 0},
          {op(Op::dtanh), 22, 22, 21, 0, 0},
          {op(Op::add), 22, 10, 22, 0, 0},
          {op(Op::mul), 21, 9, 21, 0, 0},
          {op(Op::dsigmoid), 15, 21, 4, 0, 0},
          {op(Op::mul), 21, 22, 3, 0, 0},
          {op(Op::dsigmoid), 12, 21, 1, 0, 0},
          {op(Op::copy), 16, 12, 0, 0, 0},
          {op(Op::mul), 21, 22, 6, 0, 0},
          {op(Op::dsigmoid), 13, 21, 2, 0, 0},
          {op(Op::copy), 17, 13, 0, 0, 0},
          {op(Op::mul), 21, 22, 1, 0, 0},
          {op(Op::dtanh), 14, 21, 3, 0, 0},
          {op(Op::mul), 19, 22, 2, 0, 0},
          {op(Op::copy), 18, 11, 0, 0, 0}},
         2,
         second},
        2, 3,
        // Given: i f g o of x, i f of u, h, c; made: the operand, and again to be saved, i, f.
        {12,
         {{op(Op::copy), 8, 6, 0, 0, 0},
          {op(Op::copy), 9, 6, 0, 0, 0},
          {op(Op::add), 10, 0, 4, 0, 0},
          {op(Op::sigmoid), 10, 10, 0, 0, 0},
          {op(Op::add), 11, 1, 5, 0, 0},
          {op(Op::sigmoid), 11, 11, 0, 0, 0}},
         0},
        // Given: as above without the last; made: the gradients of g and o.
        {13,
         {{op(Op::tanh), 14, 8, 0, 0, 0},
          {op(Op::mul), 15, 9, 4, 0, 0},
          {op(Op::dtanh), 15, 15, 14, 0, 0},
          {op(Op::add), 15, 10, 15, 0, 0},
          {op(Op::mul), 15, 15, 1, 0, 0},
          {op(Op::dtanh), 11, 15, 3, 0, 0},
          {op(Op::mul), 14, 9, 14, 0, 0},
          {op(Op::dsigmoid), 12, 14, 4, 0, 0}},
         2,
         first});
    return &lstm.program;
  } else {
    return nullptr;
  }
}
