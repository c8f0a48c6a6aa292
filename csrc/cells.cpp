// The list of cells as data.
#include <cstring>
#include <iterator>

#include "cpu/programs.h"
#define FASTRNN_NAMESPACE fastrnn::names_only
#define FASTRNN_FN static inline
#include "cells.h"

namespace fastrnn {

namespace {

const CellInfo kCells[] = {
#define X(Cell, cell_name)             \
  {cell_name,                          \
   names_only::Cell::kGates,           \
   names_only::Cell::kSaved,           \
   names_only::Cell::kKeepsC   ? 'c'   \
   : names_only::Cell::kKeepsH ? 'h'   \
                               : '\0', \
   names_only::Cell::kSplit,           \
   names_only::Cell::kGates,           \
   names_only::Cell::kKeepsC,          \
   0},
    FASTRNN_CELLS(X)
#undef X
};

}  // namespace

int cell_count() { return static_cast<int>(std::size(kCells)); }
const CellInfo& cell_at(int i) { return kCells[i]; }

int find_cell(const char* name, CellInfo& info) {
  for (int i = 0; i < cell_count(); ++i)
    if (strcmp(name, kCells[i].name) == 0) {
      info = kCells[i];
      return i;
    }
  if (const Program* const program = find_program(name)) {
    info = program->info;
    return cell_count();
  }
  return -1;
}

}  // namespace fastrnn
