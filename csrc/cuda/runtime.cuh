// Launches from host code; a part of device.cuh.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastrnn::cuda {

inline void check(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  throw std::runtime_error(std::string("fastrnn: launch of ") + name + ": " +
                           cudaGetErrorString(status));
}

// Asks for what a kernel needs, mostly once per thread and device. Returns whether its launches may
// overlap: not where the code that runs was compiled for an architecture in which
// previous_grid_wait is nothing.
inline bool prepare(const void* kernel, const LaunchShape& shape) {
  struct Prepared {
    size_t shared = 48 << 10;  // what a kernel may have unasked
    bool overlaps = false;
  };
  thread_local std::map<std::pair<const void*, int>, Prepared> all;
  int device;
  check(cudaGetDevice(&device), shape.name);
  auto [entry, fresh] = all.try_emplace({kernel, device});
  Prepared& prepared = entry->second;
  if (fresh) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), shape.name);
    prepared.overlaps = attributes.ptxVersion >= 90;
  }
  if (shape.shared > prepared.shared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared)),
          shape.name);
    prepared.shared = shape.shared;
  }
  if (shape.cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          shape.name);
  return prepared.overlaps;
}

// Launches on the stream, a cudaStream_t of the current device. Throws std::runtime_error with the
// kernel's name and CUDA's message.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            Arguments&&... arguments) {
  const bool overlaps = prepare(reinterpret_cast<const void*>(kernel), shape) && shape.overlaps;
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (overlaps) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.together) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), shape.name);
}

}  // namespace fastrnn::cuda
