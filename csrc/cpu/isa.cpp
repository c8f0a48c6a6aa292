#include "cpu/isa.h"

#include <atomic>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/split.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastrnn::cpu {

namespace {

#if defined(__GNUC__) && defined(__x86_64__)
// Whether the CPU converts IEEE's halves, F16C, which old compilers have no name for.
bool has_halves() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}
#endif

struct Offered {
  std::vector<const Kernels*> list;
  std::atomic<const Kernels*> current;

  void add(bool cpu_has_it, const Kernels* kernels) {
    if (cpu_has_it && kernels) list.push_back(kernels);
  }
  Offered() {
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_halves();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw");
    const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool avx512bf16 = avx512vnni && __builtin_cpu_supports("avx512bf16");
    add(avx512bf16, kernels_amx());
    add(avx512bf16, kernels_avx512bf16());
    add(avx512vnni, kernels_avx512vnni());
    add(avx512, kernels_avx512());
    add(avx2, kernels_avxvnni());
    add(avx2, kernels_avx2());
#endif
    add(true, kernels_neonbf16());
    add(true, kernels_neondot());
    add(true, kernels_neon());
    add(true, kernels_portable());
    current = list[0];
  }
};

Offered& offered() {
  static Offered instance;
  return instance;
}

}  // namespace

int isa_count() { return static_cast<int>(offered().list.size()); }
const char* isa_name(int i) { return offered().list[i]->name; }
const char* isa_current() { return kernels().name; }
const Kernels& kernels() { return *offered().current.load(std::memory_order_relaxed); }

const Kernels& kernels_for_halves([[maybe_unused]] int64_t rows) {
#if defined(__GNUC__) && defined(__x86_64__)
  // Zen 4 converts 16 halves at once at two thirds of the rate of twice 8. Two rows share them.
  static const bool amd = __builtin_cpu_is("amd");
  const Kernels *const avx512 = kernels_avx512(), *const avx2 = kernels_avx2();
  if (amd && rows < 2 && avx512 && avx2 && kernels().forward_float[0] == avx512->forward_float[0])
    return *avx2;
#endif
  return kernels();
}

namespace {

std::atomic<InParts> parts{InParts::kNever};

}  // namespace

InParts in_parts() { return parts.load(std::memory_order_relaxed); }
void set_in_parts(InParts which) { parts = which; }
bool in_parts(const StepWork& step, int64_t steps, int parts, bool tiles) {
  const InParts which = in_parts();
  if (which == InParts::kNever || (!tiles && parts != 1)) return false;
  return which == InParts::kAlways || (tiles ? parts_pay(step, parts) : rounding_pays(step, steps));
}

// By parts where that is a way, and what it gives stands; else by the kernel of T.
template <class T>
void run_forward(const Kernels& k, int cell, const Forward<T>& arguments,
                 const Parallel& parallel) {
  if constexpr (std::is_same_v<T, float>)
    if (auto* const parts = k.forward_in_parts[cell]; parts && parts(arguments, parallel)) return;
  const std::tuple all(k.forward_float[cell], k.forward_double[cell], k.forward_bf16[cell]);
  std::get<ForwardKernel<T>*>(all)(arguments, parallel);
}
template <class T>
void run_backward(const Kernels& k, int cell, const Backward<T>& arguments,
                  const Parallel& parallel) {
  if constexpr (std::is_same_v<T, float>)
    if (auto* const parts = k.backward_in_parts[cell]; parts && parts(arguments, parallel)) return;
  const std::tuple all(k.backward_float[cell], k.backward_double[cell], k.backward_bf16[cell]);
  std::get<BackwardKernel<T>*>(all)(arguments, parallel);
}
template void run_forward(const Kernels&, int, const Forward<float>&, const Parallel&);
template void run_forward(const Kernels&, int, const Forward<double>&, const Parallel&);
template void run_forward(const Kernels&, int, const Forward<Bf16>&, const Parallel&);
template void run_backward(const Kernels&, int, const Backward<float>&, const Parallel&);
template void run_backward(const Kernels&, int, const Backward<double>&, const Parallel&);
template void run_backward(const Kernels&, int, const Backward<Bf16>&, const Parallel&);

bool isa_select(const char* name) {
  for (int i = 0; i < isa_count(); ++i)
    if (strcmp(isa_name(i), name) == 0) {
      offered().current = offered().list[i];
      return true;
    }
  return false;
}

}  // namespace fastrnn::cpu
