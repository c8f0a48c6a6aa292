// Launches from host code; a part of device.cuh.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/shape.h"

namespace fastrnn::cuda {

inline void check(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  throw std::runtime_error(std::string("fastrnn: launch of ") + name + ": " +
                           cudaGetErrorString(status));
}

// Asks for what a kernel may need, once per thread and device. All threads share what a device
// allows a kernel, so each asks for the same: all shared memory that a block can have. Returns
// whether the kernel's launches may overlap: not where the code that runs was compiled for an
// architecture in which previous_grid_wait is nothing.
inline bool prepare(const void* kernel, const LaunchShape& shape) {
  thread_local std::map<std::pair<const void*, int>, bool> overlaps;
  int device;
  check(cudaGetDevice(&device), shape.name);
  const std::pair key{kernel, device};
  if (const auto known = overlaps.find(key); known != overlaps.end()) return known->second;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), shape.name);
  int most;  // of a block, what the kernel itself declares included
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), shape.name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most - static_cast<int>(attributes.sharedSizeBytes)),
        shape.name);
  return overlaps[key] = attributes.ptxVersion >= 90;
}

// Launches on the stream, a cudaStream_t of the current device. Throws std::runtime_error with the
// kernel's name and CUDA's message.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            Arguments&&... arguments) {
  const bool overlaps = prepare(reinterpret_cast<const void*>(kernel), shape) && shape.overlaps;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), shape.name);
}

}  // namespace fastrnn::cuda
