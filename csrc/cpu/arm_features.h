// Which instructions a 64-bit ARM CPU has beyond those that all have.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace fastrnn::cpu {

// Whether Linux says so by a bit of AT_HWCAP or AT_HWCAP2, whose names old headers lack, or macOS
// by a name.
inline bool arm_has([[maybe_unused]] unsigned long hwcap, [[maybe_unused]] unsigned long hwcap2,
                    [[maybe_unused]] const char* name) {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & hwcap) || (getauxval(AT_HWCAP2) & hwcap2);
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof(has);
  return sysctlbyname(name, &has, &bytes, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

}  // namespace fastrnn::cpu
