// The instruction sets that this build holds and this CPU offers, and the one in use.
#pragma once

#include "cpu/split.h"
#include "layer.h"

namespace fastrnn::cpu {

// One function per isa_*.cpp: its kernels, or null where the compiler does not target it.
const Kernels* kernels_amx();  // null too where the CPU or the system lacks it
const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512vnni_tiles();  // for isa_amx.cpp, which alone has it
const Kernels* kernels_avx512();
const Kernels* kernels_avxvnni();  // null too where the CPU lacks it
const Kernels* kernels_avx2();
const Kernels* kernels_neonbf16();  // null too where the CPU lacks it
const Kernels* kernels_neondot();   // null too where the CPU lacks it
const Kernels* kernels_neon();
const Kernels* kernels_portable();

// The table of `others` under another name and with other kernels of Bf16.
template <int Cells>
Kernels with_bf16(const Kernels& others, const char* name,
                  ForwardKernel<Bf16>* const (&forward)[Cells],
                  BackwardKernel<Bf16>* const (&backward)[Cells]) {
  Kernels table = others;
  table.name = name;
  for (int i = 0; i < Cells; ++i) {
    table.forward_bf16[i] = forward[i];
    table.backward_bf16[i] = backward[i];
  }
  return table;
}

// The same with kernels whose products are of parts.
template <int Cells>
Kernels with_parts(Kernels table, ForwardInParts* const (&forward)[Cells],
                   BackwardInParts* const (&backward)[Cells]) {
  for (int i = 0; i < Cells; ++i) {
    table.forward_in_parts[i] = forward[i];
    table.backward_in_parts[i] = backward[i];
  }
  return table;
}

// Those of `others` under another name and with other streams of small weights.
template <int Cells>
Kernels with_small_streams(const Kernels& others, const char* name,
                           SmallStreamKernel* const (&streams)[Cells]) {
  Kernels table = others;
  table.name = name;
  for (int i = 0; i < Cells; ++i) table.small_stream[i] = streams[i];
  return table;
}

// The table of `others` with kernels whose products are of floats that are rounded to Bf16, where
// these are faster than FMAs; for isa_avx512bf16.cpp.
Kernels with_rounded_products(const Kernels& others);

int isa_count();
const char* isa_name(int i);  // best first, i in [0, isa_count())
const char* isa_current();
bool isa_select(const char* name);  // false if this CPU or this build lacks it

const Kernels& kernels();  // of the current one
// Those for a layer with weights of F16 and so many rows: of the current one, or of a faster one,
// with the same bits.
const Kernels& kernels_for_halves(int64_t rows);

// Which layers of float have their products made of parts, where the current one has such kernels.
enum class InParts { kNever, kWhereFaster, kAlways };
InParts in_parts();
// Whether those of a layer of such steps are, of the first so many parts, on tiles, or on others,
// which take the first part alone.
bool in_parts(const StepWork& step, int64_t steps, int parts, bool tiles);
void set_in_parts(InParts which);

// A layer by the kernels of an instruction set, the cell by its position.
template <class T>
void run_forward(const Kernels& k, int cell, const Forward<T>& arguments, const Parallel& parallel);
template <class T>
void run_backward(const Kernels& k, int cell, const Backward<T>& arguments,
                  const Parallel& parallel);

}  // namespace fastrnn::cpu
