// What host code asks of the CUDA runtime besides launches.
#include "cuda/device.cuh"
#include "cuda/loop.h"

namespace fastrnn::cuda {

Device current_device() { return device_facts(); }

Versions cuda_versions() { return versions(); }

void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, void* stream) {
  if (width > 0 && rows > 0) copy_2d(to, to_pitch, from, from_pitch, width, rows, stream);
}

void zero_bytes(void* to, size_t bytes, void* stream) {
  if (bytes > 0) set_zero(to, bytes, stream);
}

}  // namespace fastrnn::cuda
