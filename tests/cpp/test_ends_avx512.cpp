// Ends of rows on CPUs with AVX-512; elsewhere there is nothing to test.
#include "check.h"
#include "cpu/before_target.h"

#if defined(__x86_64__)
void every_end();
int main() {
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) every_end();
  return report("test_ends_avx512");
}

#include "cpu/avx512.h"
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#endif
#define FASTRNN_NAMESPACE ends_of_avx512
#include "ends.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
int main() { return report("test_ends_avx512"); }
#endif
