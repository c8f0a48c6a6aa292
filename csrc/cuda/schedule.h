// What the Python module has of the CUDA kernels; layers are ops, see layer.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn::cuda {

void bind_schedules(pybind11::module_& m);

}  // namespace fastrnn::cuda
