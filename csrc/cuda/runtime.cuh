// Launches from host code; a part of device.cuh.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/choose.h"
#include "cuda/shape.h"

namespace fastrnn::cuda {

inline void check(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would report this one
  throw std::runtime_error(std::string("fastrnn: launch of ") + name + ": " +
                           cudaGetErrorString(status));
}

// Why no kernel of this build can run on the current device, or null; `kernel` stands for all,
// which are compiled for the same GPUs. Null, too, where that is not what is wrong: a launch says
// it then.
inline const char* misfit(const void* kernel) {
  auto mode = cudaStreamCaptureModeRelaxed;  // what loads code would end a capture of this thread's
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaGetLastError();  // else the next launch would report this one
  switch (status) {
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return cudaGetErrorString(status);
    default:
      return nullptr;
  }
}

inline Versions versions() {
  Versions found{CUDART_VERSION, 0};
  cudaDriverGetVersion(&found.driver);
  return found;
}

inline Device device_facts() {
  int device;
  Device facts;
  check(cudaGetDevice(&device), "a layer");
  check(cudaDeviceGetAttribute(&facts.processors, cudaDevAttrMultiProcessorCount, device),
        "a layer");
  check(cudaDeviceGetAttribute(&facts.major, cudaDevAttrComputeCapabilityMajor, device), "a layer");
  return facts;
}

// Both wait for nothing: they are in the order of the stream.
inline void copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                    size_t rows, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const auto kind = cudaMemcpyDeviceToDevice;
  check(to_pitch == width && from_pitch == width
            ? cudaMemcpyAsync(to, from, width * rows, kind, on)
            : cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, kind, on),
        "a copy");
}
inline void set_zero(void* to, size_t bytes, void* stream) {
  check(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream)), "zeros");
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
  if (shape.cluster > 0)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          shape.name);
  return overlaps[key] = attributes.ptxVersion >= 90;
}

// What a launch looks like to CUDA.
class LaunchConfig {
  cudaLaunchAttribute attributes_[2] = {};

  cudaLaunchAttribute& add() { return attributes_[config.numAttrs++]; }

 public:
  cudaLaunchConfig_t config{};

  LaunchConfig(const LaunchShape& shape, bool overlaps, void* stream) {
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes_;
    if (overlaps) {
      cudaLaunchAttribute& attribute = add();
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 0) {
      cudaLaunchAttribute& attribute = add();
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.together) {
      cudaLaunchAttribute& attribute = add();
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
};

// Clusters of this shape that the current device runs at the same time; 0 where it cannot.
template <class... Parameters>
int64_t clusters_at_once(void (*kernel)(Parameters...), const LaunchShape& shape) {
  if (!prepare(reinterpret_cast<const void*>(kernel), shape)) return 0;
  const LaunchConfig launch(shape, false, nullptr);
  int clusters = 0;
  if (shape.cluster > 0) {
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) == cudaSuccess)
      return clusters;
    cudaGetLastError();  // a size of cluster that this device does not have
    return 0;
  }
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&clusters, kernel, shape.threads, shape.shared),
      shape.name);
  return static_cast<int64_t>(clusters) * device_facts().processors;
}

// Launches on the stream, a cudaStream_t of the current device. Throws std::runtime_error with the
// kernel's name and CUDA's message.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            Arguments&&... arguments) {
  const bool overlaps = prepare(reinterpret_cast<const void*>(kernel), shape) && shape.overlaps;
  const LaunchConfig launch(shape, overlaps, stream);
  check(cudaLaunchKernelEx(&launch.config, kernel, std::forward<Arguments>(arguments)...),
        shape.name);
}

}  // namespace fastrnn::cuda
