// Cells of cells.h as programs, written by hand: what a traced function becomes.
#pragma once

#include <type_traits>
#include <vector>

#include "program.h"

struct ProgramByHand {
  std::vector<fastrnn::Instruction> forward, backward;
  std::vector<double> constants;  // of backward
  fastrnn::Program program;

  static uint16_t op(fastrnn::Op op) { return static_cast<uint16_t>(op); }
  // reads: of each plane of backward that is given, whether it is read.
  ProgramByHand(const char* name, fastrnn::CellInfo info, int64_t forward_planes,
                std::vector<fastrnn::Instruction> f, int64_t backward_planes,
                std::vector<fastrnn::Instruction> b, const bool* reads, int64_t temps)
      : forward(std::move(f)), backward(std::move(b)), constants{0} {
    static const bool all[32] = {true, true, true, true, true, true, true, true,
                                 true, true, true, true, true, true, true, true};
    program = {name,
               info,
               0,
               false,
               {forward.data(), static_cast<int64_t>(forward.size()), nullptr, 0, forward_planes, 0,
                temps, all},
               {backward.data(), static_cast<int64_t>(backward.size()), constants.data(), 1,
                backward_planes, 0, temps, reads}};
    program.info.name = name;
    program.info.program = &program;
  }
  ProgramByHand(const ProgramByHand&) = delete;
};

// The program of a cell, with the same saved planes, or null.
template <class Cell>
const fastrnn::Program* program_of() {
  using fastrnn::Op;
  const auto op = [](Op op) { return ProgramByHand::op(op); };
  if constexpr (std::is_same_v<Cell, emulated::Lstm>) {
    // Given: gates i f g o, h, c; made: h, c and the activated gates.
    static const bool reads[16] = {true, true, true, true, false, true, false, true, true, true};
    static const ProgramByHand lstm(
        "lstm by hand",
        {.gates = 4,
         .saved = 4,
         .keeps = 'c',
         .split = false,
         .hidden_gates = 4,
         .own = 1,
         .params = 0},
        12,
        {{op(Op::sigmoid), 8, 0, 0, 0, 0},
         {op(Op::sigmoid), 9, 1, 0, 0, 0},
         {op(Op::tanh), 10, 2, 0, 0, 0},
         {op(Op::sigmoid), 11, 3, 0, 0, 0},
         {op(Op::muladdmul), 7, 9, 5, 8, 10},
         {op(Op::tanh), 12, 7, 0, 0, 0},
         {op(Op::mul), 6, 11, 12, 0, 0}},
        // Given: i f g o, h and c before, h and c, their gradients; made: those of gates, h and c.
        16,
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
        reads, 2);
    return &lstm.program;
  } else if constexpr (std::is_same_v<Cell, emulated::Gru>) {
    // Given: r z n of x, r z n of u, h; made: h, and r, z, n and n of u.
    static const bool reads[14] = {true, true, true, true, true, false, true};
    static const ProgramByHand gru(
        "gru by hand",
        {.gates = 3,
         .saved = 4,
         .keeps = '\0',
         .split = true,
         .hidden_gates = 3,
         .own = 0,
         .params = 0},
        12,
        {{op(Op::add), 8, 0, 3, 0, 0},
         {op(Op::sigmoid), 8, 8, 0, 0, 0},
         {op(Op::add), 9, 1, 4, 0, 0},
         {op(Op::sigmoid), 9, 9, 0, 0, 0},
         {op(Op::fma), 10, 8, 5, 2, 0},
         {op(Op::tanh), 10, 10, 0, 0, 0},
         {op(Op::copy), 11, 5, 0, 0, 0},
         {op(Op::sub), 12, 6, 10, 0, 0},
         {op(Op::fma), 7, 9, 12, 10, 0}},
        // Given: what was saved, h before, h, its gradient; made: those of x, of u, of h before.
        14,
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
        reads, 1);
    return &gru.program;
  } else {
    return nullptr;
  }
}
