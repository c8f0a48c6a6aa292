// Which schedule a loop takes, graphs of launches that repeat, and what Python sees of both.
#include "cuda/schedule.h"

#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/run.h"
#include "layer.h"

namespace py = pybind11;

namespace fastrnn::cuda {
namespace {

// How many groups of a loop the current device runs at the same time.
auto at_once(const Loop& loop, bool backward) {
  return [&loop, backward](const Groups& g) {
    return backward ? backward_at_once(loop, g) : forward_at_once(loop, g);
  };
}

// What takes least time, or of persistent groups alone, which the driver is asked for once.
Plan remembered(const Loop& loop, const Whole& whole, bool alone) {
  const Device device = current_device();
  using Key = std::array<int64_t, 10>;
  thread_local std::map<Key, Plan> known;
  const Key key{loop.cell,      static_cast<int64_t>(loop.dtype),
                whole.gates,    whole.hidden,
                whole.batch,    whole.directions,
                whole.backward, alone,
                device.major,   device.processors};
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() >= 1024) known.clear();
  const auto most = at_once(loop, whole.backward);
  return known[key] = alone ? Plan{false, choose_groups(whole, device, kNoLimit, most)}
                            : choose_of_all(whole, device, most);
}

// The function `replay` of Python, which outlives the interpreter.
py::object& graphs() {
  static auto* const function = new py::object;
  return *function;
}

}  // namespace

Plan choose_plan(const How& how, const Loop& loop, const std::vector<ProductSize>& products,
                 int64_t batch, int64_t directions, bool backward) {
  const std::string& schedule = how.schedule;
  if (schedule == "library") return {true};
  if (schedule == "stepwise") return {};
  const bool automatic = schedule.starts_with("auto");
  if (products.size() == 1 && batch > 0 && schedule != "auto") {
    const ProductSize& p = products[0];
    const int64_t hidden = backward ? p.units : p.depth;
    const int gates = static_cast<int>(backward ? p.depth / hidden : p.planes);
    const Whole whole{gates, hidden, batch, directions, loop.dtype, backward};
    const size_t units = schedule.find_first_of("0123456789");
    if (units == std::string::npos) {
      const Plan plan = remembered(loop, whole, !automatic);
      if (automatic || plan.groups.blocks > 0) return plan;
    } else {
      size_t end;
      const int count = std::stoi(schedule.substr(units), &end);
      return {false, whole.of(count, std::stoi(schedule.substr(units + end)))};
    }
  }
  if (schedule == "persistent") throw std::runtime_error("no group of blocks holds this layer");
  if (!automatic) return {};
  const StepTimes t = step_times(products.data(), static_cast<int>(products.size()), batch,
                                 directions, how.dtype, current_device());
  return {t.library <= t.stepwise};
}

void replay(const How& how, const std::string& key, int64_t launches,
            const std::function<void(uintptr_t stream)>& chain) {
  if (!how.repeats) return chain(how.stream);
  const py::gil_scoped_acquire locked;
  graphs()(py::bytes(key), how.stream, launches, py::cpp_function([&](uintptr_t stream) {
             const py::gil_scoped_release unlocked;
             chain(stream);
           }));
}

void bind_schedules(py::module_& m) {
  m.def(
      "cuda_replay_by", [](py::object function) { graphs() = std::move(function); },
      py::arg("function"),
      "Has function(key, stream, launches, run) make the launches of a loop that may repeat, so "
      "many: run(stream) makes them, and equal keys say that they are the same.");
  m.def(
      "cuda_misfit",
      []() -> std::optional<std::string> {
        const char* const text = current_misfit();
        return text ? std::optional<std::string>(text) : std::nullopt;
      },
      "Why none of the kernels can run on the current device, in CUDA's words, or None.");
  m.def(
      "cuda_versions",
      [] {
        const Versions found = cuda_versions();
        return std::tuple(found.built, found.driver);
      },
      "The version of CUDA with which the kernels were compiled and the latest that the driver "
      "serves, 13020 for 13.2; 0 without a driver.");
  m.def(
      "cuda_groups",
      [](const std::string& cell, int gates, const std::string& dtype, int64_t hidden,
         int64_t batch, int64_t directions, bool backward, int units, int64_t rows) {
        CellInfo info;
        const int position = find_cell(cell.c_str(), info);
        if (position < 0 || info.program) throw std::invalid_argument("fastrnn: no cell " + cell);
        for (int k = 0; k < kDtypes; ++k) {
          if (dtype != kDtypeNames[k]) continue;
          const Loop loop{position, static_cast<Dtype>(k), false};
          const Whole whole{gates, hidden, batch, directions, loop.dtype, backward};
          const Plan plan = units > 0
                                ? Plan{false, whole.of(units, rows)}
                                : choose_of_all(whole, current_device(), at_once(loop, backward));
          const Groups& g = plan.groups;
          return std::tuple(g.units, g.rows,
                            ring_size(g, gates, hidden, directions, backward, whole.item()));
        }
        throw std::invalid_argument("fastrnn: no dtype " + dtype);
      },
      py::arg("cell"), py::arg("gates"), py::arg("dtype"), py::arg("hidden"), py::arg("batch"),
      py::arg("directions"), py::arg("backward"), py::arg("units") = 0, py::arg("rows") = 0,
      "What a loop without projection is given for the persistent schedule on the current device: "
      "units of a block and rows of a group, those that are asked for or the best, and numbers of "
      "the ring in memory. All are 0 where another schedule takes less time, or that cannot run.");
}

}  // namespace fastrnn::cuda
