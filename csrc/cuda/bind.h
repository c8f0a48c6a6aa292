// The classes CudaForward and CudaBackward of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn::cuda {

void bind_loops(pybind11::module_& m);

}  // namespace fastrnn::cuda
