// Ends of rows on CPUs with AVX2; elsewhere there is nothing to test.
#include "check.h"
#include "cpu/before_target.h"

#if defined(__x86_64__)
void every_end();
int main() {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) every_end();
  return report("test_ends_avx2");
}

#include "cpu/avx2.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTRNN_NAMESPACE ends_of_avx2
#include "ends.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
int main() { return report("test_ends_avx2"); }
#endif
