// The class Stream of the Python module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace fastrnn {

void bind_stream(pybind11::module_& m);

}  // namespace fastrnn
