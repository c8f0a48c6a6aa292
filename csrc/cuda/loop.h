// The launches of a loop over time, from host code: no torch, no CUDA header.
#pragma once

#include <cstddef>

#include "cuda/choose.h"
#include "cuda/shape.h"
#include "cuda/steps.h"

namespace fastrnn::cuda {

// Which kernels run the loop: a cell by its position in the list in cells.h.
struct Loop {
  int cell;
  Dtype dtype;
  bool library;  // which makes the products of the steps; else the step kernels do
};

// The device on which the current thread launches.
Device current_device();
// Why no kernel can run there, or null. It is a lasting reason.
const char* current_misfit();
Versions cuda_versions();
// Copies rows of `width` bytes, and writes zeros, on `stream`, as `launch_step` does.
void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, void* stream);
void zero_bytes(void* to, size_t bytes, void* stream);

// Launches the part of step i on `stream`, a cudaStream_t of the current device. `overlaps`: the
// launch before on that stream was one of the same loop, and this one may begin before its end. In
// the library schedule `sums` must have been made. Throws std::runtime_error if CUDA refuses, and
// std::length_error if there are more blocks than a launch can have.
void launch_step(const Loop& loop, const Forward& forward, int64_t i, Part part, bool overlaps,
                 void* stream);
void launch_step(const Loop& loop, const Backward& backward, int64_t i, Part part, bool overlaps,
                 void* stream);

// The persistent schedule, choose.h: all steps in one launch. Throws std::runtime_error if CUDA
// refuses.
void launch_all(const Loop& loop, const Forward& forward, const Groups& groups, void* stream);
void launch_all(const Loop& loop, const Backward& backward, const Groups& groups, void* stream);
// How many such groups the current device runs at the same time; 0 where it cannot.
int64_t forward_at_once(const Loop& loop, const Groups& groups);
int64_t backward_at_once(const Loop& loop, const Groups& groups);

}  // namespace fastrnn::cuda
