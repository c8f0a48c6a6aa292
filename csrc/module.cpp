// The Python module fastrnn._C: how it was built and which instruction set the CPU kernels use.
//
// Tensors do not pass through here: importing the module loads this shared object, whose static
// initialisers register the ops (cpu/bind.cpp). torch/extension.h would tie the object to one
// version of torch, so it is not included.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/stream.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#else
  return std::string("GCC ") + __VERSION__;
#endif
}

std::string torch_target() {
  constexpr unsigned long long version = TORCH_TARGET_VERSION;
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["flags"] = FASTRNN_FLAGS;
  info["cxx_standard"] = "C++" + std::to_string(__cplusplus / 100 % 100);
  info["torch_target_version"] = torch_target();
  info["cuda"] = bool(FASTRNN_CUDA);
  return info;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  for (int i = 0; i < fastrnn::cpu::isa_count(); ++i) names.push_back(fastrnn::cpu::isa_name(i));
  return names;
}

void set_isa(const std::string& name) {
  if (fastrnn::cpu::isa_select(name.c_str())) return;
  std::string offered;
  for (const std::string& each : cpu_features()) offered += (offered.empty() ? "" : ", ") + each;
  throw py::value_error("instruction set '" + name + "' is not offered here, only " + offered);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "The compiled part of fastrnn. Importing it registers the CPU kernels of fastrnn's ops.";
  m.def("build_info", &build_info,
        "How this module was compiled: compiler, flags, cxx_standard, torch_target_version (the "
        "oldest torch it runs on) and cuda (whether it has CUDA kernels).");
  m.def("cpu_features", &cpu_features,
        "The instruction sets that this CPU offers and kernels were compiled for, best first.");
  m.def("isa", &fastrnn::cpu::isa_current, "The instruction set that the CPU kernels use.");
  fastrnn::bind_stream(m);
  m.def("set_isa", &set_isa, py::arg("name"),
        "Makes the CPU kernels use one of cpu_features(), from the next call on; for tests. Raises "
        "ValueError for any other name.");
}
