// The instruction sets that this build holds and this CPU offers, and the one in use.
#pragma once

#include "layer.h"

namespace fastrnn::cpu {

// One function per isa_*.cpp: its kernels, or null where the compiler does not target it.
const Kernels* kernels_amx();  // null too where the CPU or the system lacks it
const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
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

int isa_count();
const char* isa_name(int i);  // best first, i in [0, isa_count())
const char* isa_current();
bool isa_select(const char* name);  // false if this CPU or this build lacks it

const Kernels& kernels();  // of the current one

}  // namespace fastrnn::cpu
