// The Python module fastrnn._C: how it was built and which instruction set the CPU kernels use.
//
// Importing the module loads this shared object, whose static initialisers register the ops
// (cpu/bind.cpp). torch/extension.h would tie the object to one version of torch, so it is not
// included; what comes past the dispatcher is seen through DLPack (cpu/direct.cpp).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/direct.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/programs.h"
#include "cpu/split.h"
#include "cpu/stream.h"
#if FASTRNN_CUDA
#include "cuda/schedule.h"
#endif

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

constexpr const char* kInPartsNames[] = {"never", "where faster", "always"};

void set_in_parts(const std::string& name) {
  for (size_t i = 0; i < std::size(kInPartsNames); ++i)
    if (name == kInPartsNames[i])
      return fastrnn::cpu::set_in_parts(static_cast<fastrnn::cpu::InParts>(i));
  throw py::value_error("'" + name + "' is none of 'never', 'where faster' and 'always'");
}
const char* in_parts() { return kInPartsNames[static_cast<int>(fastrnn::cpu::in_parts())]; }

// (name, gates, saved, keeps, split, hidden_gates, own) of each cell, as in fastrnn/table.py.
using CellTuple = std::tuple<std::string, int64_t, int64_t, std::string, bool, int64_t, int64_t>;
std::vector<CellTuple> cells() {
  std::vector<CellTuple> list;
  for (int i = 0; i < fastrnn::cell_count(); ++i) {
    const fastrnn::CellInfo& c = fastrnn::cell_at(i);
    list.emplace_back(c.name, c.gates, c.saved, c.keeps ? std::string(1, c.keeps) : "", c.split,
                      c.hidden_gates, c.own);
  }
  return list;
}

// A code as (instructions, constants, planes, row_temps, temps, reads).
using CodeTuple = std::tuple<py::bytes, std::vector<double>, int64_t, int64_t, int64_t, py::bytes>;

void register_program(const std::string& name, int64_t gates_x, int64_t gates_u, int64_t gates_w,
                      int64_t own, int64_t params, int64_t saved, int64_t saved_first,
                      int64_t output, bool split, bool row_sums, const CodeTuple& forward,
                      const CodeTuple& backward, const CodeTuple& first_forward,
                      const CodeTuple& first_backward) {
  const auto code = [](const CodeTuple& c) {
    const auto& [instructions, constants, planes, row_temps, temps, reads] = c;
    return fastrnn::GivenCode{instructions, constants, planes, row_temps, temps, reads};
  };
  fastrnn::register_program({name, gates_x, gates_u, gates_w, own, params, saved, saved_first,
                             output, split, row_sums, code(forward), code(backward),
                             code(first_forward), code(first_backward)});
}

using Costs = std::map<std::string, double>;

std::map<std::string, double*> by_name(fastrnn::cpu::StepCosts& costs) {
  return {{"flops", &costs.flops},           {"near", &costs.near},
          {"near_bytes", &costs.near_bytes}, {"far_bytes", &costs.far_bytes},
          {"meeting", &costs.meeting},       {"each_member", &costs.each_member}};
}
// The costs of the kernels, but for those that are named.
fastrnn::cpu::StepCosts with_costs(const Costs& named) {
  fastrnn::cpu::StepCosts costs;
  const auto known = by_name(costs);
  for (const auto& [name, value] : named) *known.at(name) = value;
  return costs;
}
Costs step_costs() {
  fastrnn::cpu::StepCosts costs;
  Costs named;
  for (const auto& [name, value] : by_name(costs)) named[name] = *value;
  return named;
}

std::array<int64_t, 3> split_step(int64_t batch, int64_t outputs, int64_t depth, int64_t itemsize,
                                  int64_t threads, int64_t most_units, const Costs& costs) {
  const auto split = fastrnn::cpu::split_step({batch, outputs, depth, itemsize}, threads,
                                              most_units, with_costs(costs));
  return {split.rows, split.units, split.slices};
}

double step_time(int64_t batch, int64_t outputs, int64_t depth, int64_t itemsize, int64_t rows,
                 int64_t units, const Costs& costs) {
  return fastrnn::cpu::step_time({batch, outputs, depth, itemsize}, {rows, units},
                                 with_costs(costs));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "The compiled part of fastrnn. Importing it registers the CPU kernels of fastrnn's ops.";
  // As torch does, not MemoryError.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_RuntimeError, "DefaultCPUAllocator: can't allocate memory");
    }
  });
  m.def("build_info", &build_info,
        "How this module was compiled: compiler, flags, cxx_standard, torch_target_version (the "
        "oldest torch it runs on) and cuda (whether it has CUDA kernels).");
  m.def("cpu_features", &cpu_features,
        "The instruction sets that this CPU offers and kernels were compiled for, best first.");
  m.def("isa", &fastrnn::cpu::isa_current, "The instruction set that the CPU kernels use.");
  m.def("in_parts", &in_parts,
        "Which products of float32 are made of bfloat16, if the instruction set in use has such "
        "kernels: \"never\", \"where faster\" or \"always\".");
  m.def(
      "has_parts", [] { return fastrnn::cpu::kernels().forward_in_parts[0] != nullptr; },
      "Whether it has: \"amx\" and, on an AMD, \"avx512bf16\", which rounds, and so takes a call "
      "that allows one part alone.");
  m.def("set_in_parts", &set_in_parts, py::arg("which"),
        "Says so, from the next call on. Raises ValueError for any other word.");
  m.def("cells", &cells,
        "(name, gates, saved, keeps, split, hidden_gates, own) of each cell: fastrnn/table.py.");
  m.def("register_program", &register_program, py::arg("name"), py::arg("gates_x"),
        py::arg("gates_u"), py::arg("gates_w"), py::arg("own"), py::arg("params"), py::arg("saved"),
        py::arg("saved_first"), py::arg("output"), py::arg("split"), py::arg("row_sums"),
        py::arg("forward"), py::arg("backward"), py::arg("first_forward"),
        py::arg("first_backward"),
        "Makes a program of fastrnn/programs/program.py a cell that calls can name, for as long as "
        "the process lasts. Raises ValueError if it does not hold together.");
  m.def("program_ops", &fastrnn::program_ops, "The operations of programs, by position.");
  m.def("split_step", &split_step, py::arg("batch"), py::arg("outputs"), py::arg("depth"),
        py::arg("itemsize"), py::arg("threads"), py::arg("most_units"), py::arg("costs") = Costs{},
        "How threads share a step: (pieces of the batch, pieces of the units, slices of each of "
        "these). A step makes `outputs` sums of `depth` terms for each row of the batch; the units "
        "can be cut into most_units. `costs` by name, see StepCosts in csrc/cpu/split.h.");
  m.def("step_costs", &step_costs, "The costs of a step that split_step goes by, by name.");
  m.def("step_time", &step_time, py::arg("batch"), py::arg("outputs"), py::arg("depth"),
        py::arg("itemsize"), py::arg("rows"), py::arg("units"), py::arg("costs") = Costs{},
        "Nanoseconds of a step that is shared in so many pieces, in the model of split_step.");
  m.def("release_memory", &fastrnn::cpu::release_memory, py::call_guard<py::gil_scoped_release>(),
        "Gives the system the memory that waits for the next call; how many bytes that were.");
  fastrnn::bind_stream(m);
  fastrnn::bind_direct(m);
#if FASTRNN_CUDA
  fastrnn::cuda::bind_schedules(m);
#endif
  m.def("set_isa", &set_isa, py::arg("name"),
        "Makes the CPU kernels use one of cpu_features(), from the next call on; for tests. Raises "
        "ValueError for any other name.");
}
