// The programs that this process has been given, see program.h.
#pragma once

#include <string>
#include <vector>

#include "program.h"

namespace fastrnn {

// A program as Python has it, in fastrnn/programs/program.py.
struct GivenCode {
  std::string instructions;  // of six numbers of 16 bits each
  std::vector<double> constants;
  int64_t planes, row_temps, temps;
  std::string reads;
};
struct GivenProgram {
  std::string name;
  int64_t gates_x, gates_u, gates_w, own, params, saved, saved_first, output;
  bool split, row_sums;
  GivenCode forward, backward, first_forward, first_backward;  // no planes in the first: none
};

// Keeps it for as long as the process lasts; one of the same name is the same. Raises
// std::invalid_argument if it does not hold together.
void register_program(const GivenProgram& given);
// The program of this name, or null.
const Program* find_program(const char* name);
// The operations by position.
std::vector<std::string> program_ops();

}  // namespace fastrnn
