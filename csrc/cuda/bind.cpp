// The loops over time as Python sees them: sizes and addresses, no tensor.
#include "cuda/bind.h"

#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/loop.h"

namespace py = pybind11;

namespace fastrnn::cuda {
namespace {

using Values = std::map<std::string, int64_t>;

// Takes values by name; each of `values` must have been asked for.
class Reader {
  Values values_;

 public:
  explicit Reader(const Values& values) : values_(values) {}
  int64_t number(const char* name) {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::invalid_argument(std::string("fastrnn: no ") + name);
    const int64_t value = found->second;
    values_.erase(found);
    return value;
  }
  // 0 where there is none.
  int64_t number_if_there(const char* name) { return values_.contains(name) ? number(name) : 0; }
  // null where there is none.
  template <class T>
  void address(const char* name, T*& to) {
    to = reinterpret_cast<T*>(number_if_there(name));
  }
  void end() const {
    if (!values_.empty())
      throw std::invalid_argument("fastrnn: nothing named " + values_.begin()->first);
  }
};

Sizes sizes(Reader& read) {
  Sizes s;
  s.steps = read.number("T");
  s.batch = read.number("N");
  s.rows = read.number("rows");
  s.hidden = read.number("H");
  s.state = read.number("P");
  s.directions = read.number("D");
  s.planes = read.number("G");
  read.address("lengths", s.lengths);
  read.address("offsets", s.offsets);
  read.address("reset", s.reset);
  return s;
}

// Those of the persistent schedule, of as many units and rows as are said; none if that is nothing.
Groups read_groups(Reader& read, const Loop& loop, const Sizes& s, bool backward) {
  const int64_t units = read.number_if_there("group_units");
  const int64_t rows = read.number_if_there("group_rows");
  if (units == 0) return {};
  return make_groups(static_cast<int>(units), rows, static_cast<int>(s.planes), s.hidden, s.batch,
                     backward, static_cast<int>(item_size(loop.dtype)));
}

#define FASTRNN_ADDRESS(name) read.address(#name, s.name)

Forward forward(Reader& read) {
  Forward s;
  s.size = sizes(read);
  FASTRNN_ADDRESS(x), FASTRNN_ADDRESS(w_hh), FASTRNN_ADDRESS(b_hh), FASTRNN_ADDRESS(w_hr);
  FASTRNN_ADDRESS(h), FASTRNN_ADDRESS(m), FASTRNN_ADDRESS(kept), FASTRNN_ADDRESS(y);
  FASTRNN_ADDRESS(h_n), FASTRNN_ADDRESS(gates), FASTRNN_ADDRESS(cells), FASTRNN_ADDRESS(hidden);
  FASTRNN_ADDRESS(sums), FASTRNN_ADDRESS(ring);
  s.projected = s.w_hr != nullptr;
  return s;
}

Backward backward(Reader& read, double grad_clip) {
  Backward s;
  s.size = sizes(read);
  s.detach_every = read.number("detach_every");
  s.grad_clip = grad_clip;
  if (s.detach_every >= s.size.steps) s.detach_every = 0;  // no step is that late
  FASTRNN_ADDRESS(dy), FASTRNN_ADDRESS(dh_n), FASTRNN_ADDRESS(d_cells), FASTRNN_ADDRESS(d_kept);
  FASTRNN_ADDRESS(w_hh), FASTRNN_ADDRESS(w_hr), FASTRNN_ADDRESS(h0), FASTRNN_ADDRESS(c0);
  FASTRNN_ADDRESS(y), FASTRNN_ADDRESS(gates), FASTRNN_ADDRESS(cells), FASTRNN_ADDRESS(dx);
  FASTRNN_ADDRESS(du), FASTRNN_ADDRESS(d_state), FASTRNN_ADDRESS(sent);
  FASTRNN_ADDRESS(sent_state), FASTRNN_ADDRESS(sums), FASTRNN_ADDRESS(ring);
  s.projected = s.w_hr != nullptr;
  return s;
}
#undef FASTRNN_ADDRESS

Loop loop(const std::string& cell, const std::string& dtype, bool library) {
  const int position = find_cell(cell.c_str());
  if (position < 0) throw std::invalid_argument("fastrnn: no cell " + cell);
  for (int k = 0; k < kDtypes; ++k)
    if (dtype == kDtypeNames[k]) return {position, static_cast<Dtype>(k), library};
  throw std::invalid_argument("fastrnn: no dtype " + dtype);
}

// A loop that is ready to run, as often as its memory is there.
template <class Steps>
struct Runner {
  Loop loop;
  Steps steps;
  Groups groups;
  std::vector<Part> parts;

  static constexpr bool kForward = std::is_same_v<Steps, Forward>;

  // Of steps that were read, and the rest of what is given.
  Runner(const Loop& loop, const Steps& steps, Reader& read)
      : loop(loop),
        steps(steps),
        groups(read_groups(read, loop, steps.size, !kForward)),
        parts{Part::kCell} {
    read.end();
    if (steps.projected) parts.insert(kForward ? parts.end() : parts.begin(), Part::kState);
  }

  void step(int64_t i, bool state, uintptr_t stream) const {
    launch_step(loop, steps, i, state ? Part::kState : Part::kCell, false,
                reinterpret_cast<void*>(stream));
  }
  void run(uintptr_t stream) const {
    if (groups.blocks > 0) return launch_all(loop, steps, groups, reinterpret_cast<void*>(stream));
    bool overlaps = false;
    for (int64_t k = 0; k < steps.size.steps; ++k)
      for (const Part part : parts) {
        const int64_t i = kForward ? k : steps.size.steps - 1 - k;
        launch_step(loop, steps, i, part, overlaps, reinterpret_cast<void*>(stream));
        overlaps = true;
      }
  }
};

template <class Steps, class Init>
void bind(py::module_& m, const char* name, Init init, const char* doc) {
  using Released = py::call_guard<py::gil_scoped_release>;
  py::class_<Runner<Steps>>(m, name, doc)
      .def(std::move(init))
      .def("step", &Runner<Steps>::step, Released(), py::arg("i"), py::arg("state"),
           py::arg("stream"),
           "Launches step i, of a projected layer the part that makes the state or its gradient, "
           "or the other; in the library schedule after `sums` were made.")
      .def("run", &Runner<Steps>::run, Released(), py::arg("stream"),
           "Launches all steps of the stepwise or the persistent schedule.");
}

}  // namespace

void bind_loops(py::module_& m) {
  bind<Forward>(m, "CudaForward",
                py::init([](const std::string& cell, const std::string& dtype, bool library,
                            const Values& values) {
                  Reader read(values);
                  return Runner<Forward>(loop(cell, dtype, library), forward(read), read);
                }),
                "A forward loop over time; sizes and addresses by name, see csrc/cuda/steps.h.");
  bind<Backward>(m, "CudaBackward",
                 py::init([](const std::string& cell, const std::string& dtype, bool library,
                             const Values& values, double grad_clip) {
                   Reader read(values);
                   return Runner<Backward>(loop(cell, dtype, library), backward(read, grad_clip),
                                           read);
                 }),
                 "A backward loop over time, as CudaForward.");
  m.def(
      "cuda_groups",
      [](const std::string& cell, int gates, const std::string& dtype, int64_t hidden,
         int64_t batch, int64_t directions, bool backward, int units, int64_t rows) {
        const Loop chosen = loop(cell, dtype, false);
        const int item = static_cast<int>(item_size(chosen.dtype));
        const auto at_once = [&](const Groups& g) {
          return backward ? backward_at_once(chosen, g) : forward_at_once(chosen, g);
        };
        const Groups g = units > 0 ? make_groups(units, rows, gates, hidden, batch, backward, item)
                                   : choose_groups(gates, hidden, batch, directions, chosen.dtype,
                                                   backward, at_once);
        return std::tuple(g.units, g.rows, ring_size(g, gates, hidden, directions, backward, item));
      },
      py::arg("cell"), py::arg("gates"), py::arg("dtype"), py::arg("hidden"), py::arg("batch"),
      py::arg("directions"), py::arg("backward"), py::arg("units") = 0, py::arg("rows") = 0,
      "What a loop without projection is given for the persistent schedule on the current device: "
      "units of a block and rows of a group, those that are asked for or the best, and numbers of "
      "the ring in memory. All are 0 where that cannot run it.");
}

}  // namespace fastrnn::cuda
