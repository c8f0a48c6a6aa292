#include "cpu/isa.h"

#include <cstring>

namespace fastrnn::cpu {

namespace {

struct Offered {
  const Kernels* list[5];
  int count = 0;
  const Kernels* current;

  void add(bool cpu_has_it, const Kernels* kernels) {
    if (cpu_has_it && kernels) list[count++] = kernels;
  }
  Offered() {
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw");
    const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    add(avx512bf16, kernels_amx());
    add(avx512bf16, kernels_avx512bf16());
    add(avx512, kernels_avx512());
    add(avx2, kernels_avx2());
#endif
    add(true, kernels_portable());
    current = list[0];
  }
};

Offered& offered() {
  static Offered instance;
  return instance;
}

}  // namespace

int isa_count() { return offered().count; }
const char* isa_name(int i) { return offered().list[i]->name; }
const char* isa_current() { return offered().current->name; }
const Kernels& kernels() { return *offered().current; }

bool isa_select(const char* name) {
  for (int i = 0; i < isa_count(); ++i)
    if (strcmp(isa_name(i), name) == 0) {
      offered().current = offered().list[i];
      return true;
    }
  return false;
}

}  // namespace fastrnn::cpu
