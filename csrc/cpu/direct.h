// The class Direct of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastrnn {

void bind_direct(pybind11::module_& m);

}  // namespace fastrnn
