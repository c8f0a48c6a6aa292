// As much of CUDA's runtime as runtime.cuh calls, on the host: two devices, each of which remembers
// what its kernels may have, for all threads, and refuses a launch that wants more. The second has
// no clusters.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#define CUDART_VERSION 13020
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorInsufficientDriver,
  cudaErrorInvalidDeviceFunction,
  cudaErrorInvalidKernelImage,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidPtx,
  cudaErrorUnsupportedPtxVersion,
  cudaErrorJitCompilerNotFound,
  cudaErrorJitCompilationDisabled
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeProgrammaticStreamSerialization,
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeCooperative
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned width) : x(width) {}
};
using cudaStream_t = struct Stream*;
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed, cooperative;
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace standin {

inline constexpr int kMostShared[] = {227 << 10, 99 << 10}, kDeclared = 1 << 10;
inline constexpr int kProcessors = 132, kMajor[] = {9, 8}, kMostCluster = 16;
inline thread_local int device = 0;
inline std::atomic<int> calls = 0;  // but launches
inline cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
inline cudaError_t loading = cudaSuccess, last = cudaSuccess;  // how a kernel's code loads

struct Limits {
  std::mutex mutex;
  std::map<const void*, size_t> shared;
  std::set<const void*> large_clusters;
};
inline Limits limits[2];

}  // namespace standin

// On the host a stream has no order to keep.
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t rows, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < rows; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch,
                static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(standin::last, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "another error";
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 12040;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, standin::mode);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = standin::device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  ++standin::calls;
  *value = which == cudaDevAttrMultiProcessorCount      ? standin::kProcessors
           : which == cudaDevAttrComputeCapabilityMajor ? standin::kMajor[device]
                                                        : standin::kMostShared[device];
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  ++standin::calls;
  if (standin::loading != cudaSuccess && standin::mode == cudaStreamCaptureModeRelaxed)
    return standin::last = standin::loading;
  *attributes = {standin::kDeclared, 90};
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute which, int value) {
  ++standin::calls;
  if (which == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    const std::lock_guard lock(standin::limits[standin::device].mutex);
    standin::limits[standin::device].large_clusters.insert(kernel);
    return cudaSuccess;
  }
  if (value + standin::kDeclared > standin::kMostShared[standin::device])
    return cudaErrorInvalidValue;
  standin::Limits& limits = standin::limits[standin::device];
  const std::lock_guard lock(limits.mutex);
  limits.shared[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
// Blocks of a cluster that a launch asks for, 0 if none.
inline unsigned cluster_of(const cudaLaunchConfig_t& config) {
  for (unsigned k = 0; k < config.numAttrs; ++k)
    if (config.attrs[k].id == cudaLaunchAttributeClusterDimension)
      return config.attrs[k].val.clusterDim.x;
  return 0;
}
template <class... Parameters>
bool cluster_fits(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...)) {
  const unsigned blocks = cluster_of(config);
  const auto& large = standin::limits[standin::device].large_clusters;
  return blocks == 0 || (standin::device == 0 && config.gridDim.x % blocks == 0 &&
                         (blocks <= 8 || large.contains(reinterpret_cast<const void*>(kernel))));
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  if (!cluster_fits(*config, kernel)) return cudaErrorInvalidValue;
  *clusters = standin::kProcessors / static_cast<int>(cluster_of(*config));
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int,
                                                          size_t shared) {
  *blocks = shared <= static_cast<size_t>(standin::kMostShared[standin::device]) ? 1 : 0;
  return cudaSuccess;
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&...) {
  standin::Limits& limits = standin::limits[standin::device];
  const std::lock_guard lock(limits.mutex);
  const auto found = limits.shared.find(reinterpret_cast<const void*>(kernel));
  if (!cluster_fits(*config, kernel)) return cudaErrorInvalidValue;
  const size_t most = found == limits.shared.end() ? 48 << 10 : found->second;
  return config->dynamicSmemBytes <= most ? cudaSuccess : cudaErrorInvalidValue;
}
