// fastrnn._C.Stream: a stack of layers with packed weights, one time step at a time. It sees
// memory, not tensors; fastrnn/streamer.py owns that memory and checks what comes in.
#include "cpu/stream.h"

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "call.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace fastrnn {

namespace {

// Where a tensor's data lies; 0 for none.
using Address = uintptr_t;

// One thread at a time may use it. A second one meanwhile gets a std::runtime_error.
class Stack {
 public:
  virtual ~Stack() = default;
  void steps(Address x, Address y, int64_t count) {
    const Held held(*this);
    run(x, y, count);
  }
  void step(Address x, Address y) { steps(x, y, 1); }

  // The thread that takes it may take it again, and step. It gives it back as often.
  void take() {
    const std::thread::id me = std::this_thread::get_id();
    std::thread::id nobody;
    if (!holder_.compare_exchange_strong(nobody, me, std::memory_order_acquire) && nobody != me)
      throw std::runtime_error("another thread is using this stream: give each thread its own");
    ++times_;
  }
  void give_back() {
    if (--times_ == 0) holder_.store({}, std::memory_order_release);
  }

 private:
  struct Held {
    explicit Held(Stack& stack) : of(stack) { of.take(); }
    ~Held() { of.give_back(); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    Stack& of;
  };

  virtual void run(Address x, Address y, int64_t count) = 0;

  std::atomic<std::thread::id> holder_;
  int times_ = 0;  // the holder's
};

// h [L, N, P] and c [L, N, C] are read and written in place.
// The last `inputs` params, [N, H], are read at every step, where others read the weights once.
template <class T>
class StackOf final : public Stack {
 public:
  // make(forward, layer) returns the layer's stream.
  template <class Make>
  StackOf(Make&& make, int64_t layers, Sizes size, const std::vector<Address>& weights,
          const WeightNames& names, int inputs, const Program* program, Address h, Address c)
      : active_(size.batch), forwards_(static_cast<size_t>(layers)) {
    std::vector<View> views(weights.size());
    for (size_t i = 0; i < views.size(); ++i) views[i].data = at(weights[i]);
    for (size_t k = 0; k < forwards_.size(); ++k) {
      Forward<T>& f = forwards_[k];
      f = {};
      f.size = size;
      f.size.active = &active_;
      f.size.offset = &offset_;
      f.weights[0] = names.of<const T>(&views[k * static_cast<size_t>(names.count)]);
      for (int i = 0; i < names.params; ++i) {
        const T*& param = f.weights[0].params[i];
        if (i < names.params - inputs)
          param = params_.emplace_back(param, param + size.hidden).data();
        else
          f.forms[i] = Form::kEach;
      }
      const int64_t n = static_cast<int64_t>(k) * size.batch;
      f.h0 = f.h_n = at(h) + n * size.state;
      if (c) f.c0 = f.c_n = at(c) + n * size.cell;
      f.program = program;
      layers_.emplace_back(make(f, k));
      size.input = size.state;
    }
  }

  StackOf(const StackOf&) = delete;  // it points into itself
  StackOf& operator=(const StackOf&) = delete;

 private:
  // x [count, N, I] -> y [count, N, P], which every layer writes and the next one reads.
  void run(Address x, Address y, int64_t count) override {
    for (size_t k = 0; k < layers_.size(); ++k) {
      forwards_[k].x = at(k ? y : x);
      forwards_[k].y = at(y);
      layers_[k]->steps(count);
    }
  }

  static T* at(Address address) { return reinterpret_cast<T*>(address); }

  const int64_t active_, offset_ = 0;
  std::vector<Forward<T>> forwards_;
  std::vector<std::vector<T>> params_;  // learned ones: a step reads them
  std::vector<std::unique_ptr<Stream>> layers_;
};

// How the weights of a stack of float layers are stored: for each a Format, and for int8 the
// address of its scales. Empty means that all are floats.
using Formats = std::vector<std::pair<int, Address>>;

Stream* make_small(int position, const Forward<float>& f, const WeightNames& names,
                   const std::pair<int, Address>* formats, bool wide) {
  bool halves = false;
  const auto weight = [&](int at, const float* data) -> SmallWeight {
    if (at < 0) return {};
    const Format format = static_cast<Format>(formats[at].first);
    halves |= format == Format::kF16;
    return {data, reinterpret_cast<const float*>(formats[at].second), format};
  };
  const Weights<const float>& w = f.weights[0];
  const SmallWeights weights{weight(names.w_ih, w.w_ih), weight(names.w_hh, w.w_hh),
                             weight(names.w_hr, w.w_hr), wide};
  const Kernels& kernels = halves ? cpu::kernels_for_halves(f.size.batch) : cpu::kernels();
  return kernels.small_stream[position](f, weights);
}

std::unique_ptr<Stack> make_stack(const std::string& cell, bool is_double, int64_t layers,
                                  int64_t batch, int64_t input, int64_t hidden, int64_t state,
                                  int64_t heads, const std::string& weight_names, int inputs,
                                  const std::vector<Address>& weights, Address h, Address c,
                                  const Formats& formats, bool wide) {
  CellInfo info;
  const int position = find_cell(cell.c_str(), info);
  if (position < 0) throw std::invalid_argument("unknown cell '" + cell + "'");
  Sizes size{};
  size.steps = size.directions = 1;
  size.batch = size.rows = batch;
  size.input = input;
  size.hidden = hidden;
  size.state = state;
  size.heads = heads;
  size.cell = info.own * hidden;
  const WeightNames names(weight_names);
  size.projected = names.w_hr >= 0;
  if (static_cast<int64_t>(weights.size()) != layers * names.count || names.params != info.params ||
      inputs < 0 || inputs > names.params || heads < 1 || state % heads != 0)
    throw std::invalid_argument("a stream needs all weights of its layers");
  if (!formats.empty() && (is_double || info.program || formats.size() != weights.size()))
    throw std::invalid_argument("small weights need a format each, float32 and no program");
  const Kernels& kernels = cpu::kernels();
  const auto stack = [&]<class T>(T, auto&& make) -> std::unique_ptr<Stack> {
    return std::make_unique<StackOf<T>>(make, layers, size, weights, names, inputs, info.program, h,
                                        c);
  };
  if (is_double)
    return stack(double{},
                 [&](const auto& f, size_t) { return kernels.stream_double[position](f); });
  if (formats.empty())
    return stack(float{}, [&](const auto& f, size_t) { return kernels.stream_float[position](f); });
  return stack(float{}, [&](const auto& f, size_t k) {
    const size_t first = k * static_cast<size_t>(names.count);
    return make_small(position, f, names, &formats[first], wide);
  });
}

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stack>(m, "Stream",
                    "A stack of layers with packed weights, one time step at a time. All tensors "
                    "are given by the address of their data; see fastrnn/streamer.py.")
      .def(py::init(&make_stack))
      .def("step", &Stack::step, py::call_guard<py::gil_scoped_release>(), py::arg("x"),
           py::arg("y"), "One step of all layers, x (N, input_size) to y (N, state).")
      .def("steps", &Stack::steps, py::call_guard<py::gil_scoped_release>(), py::arg("x"),
           py::arg("y"), py::arg("count"), "So many steps, x (count, N, input_size) to y.")
      .def(
          "__enter__",
          [](py::object self) {
            self.cast<Stack&>().take();
            return self;
          },
          "No other thread may use it meanwhile; RuntimeError if one does now.")
      .def("__exit__", [](Stack& self, const py::args&) { self.give_back(); });
}

}  // namespace fastrnn
