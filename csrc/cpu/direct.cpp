// fastrnn._C.Direct: a stack of layers without gradients, from Python's tensors to the kernels with
// no dispatcher in between, which takes longer than a layer of one step. fastrnn/direct.py says
// when.
//
// Tensors are seen through DLPack's C exchange API, which torch.Tensor carries: it ties the object
// to no version of torch. Whatever does not fit in rank, size, dtype, device or memory layout is
// left to the op, which can do more and has the error messages.
#include "cpu/direct.h"

#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace fastrnn {

namespace {

// The ABI of DLPack 1, https://dmlc.github.io/dlpack/latest/c_api.html, as far as it is used here.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ExchangeApi {
  uint32_t major, minor;
  void* previous;
  void* others[3];
  int (*dltensor_from_py_object)(void* object, DLTensor* out);  // borrowed; -1 and a Python error
  void* current_work_stream;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2;

// A float tensor on the CPU that has a shape and lies densely. Strides of a dimension of size 1
// play no part, but for the last one: a view of a complex number's imaginary part, which may be
// stored negated, shows in it.
struct Dense : DLTensor {
  bool is(const int64_t* sizes, int32_t rank) const {
    if (device_type != kCpu || code != kFloat || lanes != 1 || ndim != rank) return false;
    if (data == nullptr || (strides && strides[rank - 1] != 1)) return false;
    int64_t stride = 1;
    for (int32_t i = rank - 1; i >= 0; --i) {
      if (shape[i] != sizes[i] || (shape[i] != 1 && strides && strides[i] != stride)) return false;
      stride *= shape[i];
    }
    return true;
  }
  bool is(std::initializer_list<int64_t> sizes) const {
    return is(sizes.begin(), static_cast<int32_t>(sizes.size()));
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(static_cast<char*>(data) + byte_offset);
  }
};

// What a call is made of. Layers and directions are the planes of h; P, H and widths as in layer.h.
struct Call {
  Dense x, h0, c0, y, h_n, c_n;
  bool has_h0, bias;
  std::vector<Dense> weights;  // of all layers and directions, in torch's order
  int64_t layers, per_direction;
  Sizes size;  // of the first layer
};

template <class T>
void compute(const Call& call, ForwardKernel<T>* kernel, bool has_c) {
  const Sizes& s = call.size;
  const int64_t h_plane = s.batch * s.state, c_plane = s.batch * s.hidden;
  const int64_t width = s.directions * s.state, planes = call.layers * s.directions;
  std::vector<int64_t> active(s.steps, s.batch), offset(s.steps);
  for (int64_t t = 0; t < s.steps; ++t) offset[t] = t * s.batch;
  const std::vector<T> zero(call.has_h0 ? 0 : planes * (has_c ? c_plane : h_plane));
  std::unique_ptr<T[]> below, above;  // outputs of all layers but the last
  Forward<T> f{};
  f.size = s;
  f.size.active = active.data();
  f.size.offset = offset.data();
  f.x = call.x.as<T>();
  for (int64_t k = 0; k < call.layers; ++k) {
    for (int64_t d = 0; d < s.directions; ++d) {
      const Dense* w = &call.weights[(k * s.directions + d) * call.per_direction];
      f.weights[d] = {w[0].as<T>(), w[1].as<T>(), call.bias ? w[2].as<T>() : nullptr,
                      call.bias ? w[3].as<T>() : nullptr,
                      s.projected ? w[call.per_direction - 1].as<T>() : nullptr};
    }
    const int64_t h_at = k * s.directions * h_plane, c_at = k * s.directions * c_plane;
    f.h0 = call.has_h0 ? call.h0.as<T>() + h_at : zero.data();
    f.h_n = call.h_n.as<T>() + h_at;
    if (has_c) f.c0 = call.has_h0 ? call.c0.as<T>() + c_at : zero.data();
    if (has_c) f.c_n = call.c_n.as<T>() + c_at;
    if (k + 1 < call.layers) {
      above.reset(new T[s.rows * width]);
      f.y = above.get();
    } else {
      f.y = call.y.as<T>();
    }
    kernel(f, cpu::parallel());
    below = std::move(above);
    f.x = below.get();
    f.size.input = width;
  }
}

class Direct {
 public:
  Direct(py::type tensor, py::type parameter) : types_{std::move(tensor), std::move(parameter)} {
    const py::object capsule = types_[0].attr("__dlpack_c_exchange_api__");
    const void* api = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (api == nullptr) throw py::error_already_set();
    api_ = static_cast<const ExchangeApi*>(api);
    if (api_->major != 1 || api_->dltensor_from_py_object == nullptr)
      throw py::value_error("no DLPack 1 with a tensor that is borrowed");
  }

  // See bind_direct.
  bool run(const std::string& cell, py::handle x, py::handle h0, py::handle c0, py::dict parameters,
           py::sequence names, py::handle y, py::handle h_n, py::handle c_n) const {
    CellInfo info;
    const int position = find_cell(cell.c_str(), info);
    Call call;
    if (position < 0 || !read(x, call.x) || !read(y, call.y) || !read(h_n, call.h_n)) return false;
    if (!fill(call, info, h0, c0, c_n)) return false;
    if (!fill_weights(call, info, parameters, names)) return false;
    const Kernels& kernels = cpu::kernels();
    const py::gil_scoped_release unlocked;
    if (call.x.bits == 32) {
      compute<float>(call, kernels.forward_float[position], info.has_c);
    } else {
      compute<double>(call, kernels.forward_double[position], info.has_c);
    }
    return true;
  }

 private:
  // Subclasses of a tensor may be anything.
  bool read(py::handle object, Dense& out) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != types_[0].ptr() && type != types_[1].ptr()) return false;
    if (api_->dltensor_from_py_object(object.ptr(), &out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // Sizes and states. One step of one layer may come without T and without layers.
  bool fill(Call& call, const CellInfo& info, py::handle h0, py::handle c0, py::handle c_n) const {
    const bool step = call.x.ndim == 2;
    if ((!step && call.x.ndim != 3) || call.h_n.ndim != (step ? 2 : 3)) return false;
    if (call.x.bits != 32 && call.x.bits != 64) return false;
    const int64_t *in = call.x.shape + !step, *state = call.h_n.shape + !step;
    const int64_t steps = step ? 1 : call.x.shape[0], planes = step ? 1 : call.h_n.shape[0];
    Sizes& s = call.size;
    s = {};
    s.steps = steps;
    s.batch = in[0];
    s.input = in[1];
    s.state = s.hidden = state[1];
    if (steps * s.batch * s.input * s.state * planes == 0) return false;
    s.rows = steps * s.batch;
    const int64_t width = call.y.ndim == call.x.ndim ? call.y.shape[call.y.ndim - 1] : 0;
    s.directions = width / s.state;
    if (s.directions != 1 && s.directions != 2) return false;
    call.layers = planes / s.directions;
    if (call.layers * s.directions != planes || call.layers == 0) return false;

    // All but the last number of a shape, which follows.
    int64_t x_shape[] = {steps, s.batch, s.input}, y_shape[] = {steps, s.batch, width};
    int64_t h_shape[] = {planes, s.batch, s.state}, c_shape[] = {planes, s.batch, s.hidden};
    const int32_t rank = call.x.ndim;
    const auto fits = [&](const Dense& t, const int64_t* shape) {
      return t.bits == call.x.bits && t.is(shape + step, rank);
    };
    if (info.has_c) {
      if (!read(c_n, call.c_n) || call.c_n.ndim != rank) return false;
      s.hidden = c_shape[2] = call.c_n.shape[rank - 1];
      if (s.hidden == 0 || !fits(call.c_n, c_shape)) return false;
    }
    s.projected = s.hidden != s.state;
    call.has_h0 = !h0.is_none();
    if (call.has_h0 && !(read(h0, call.h0) && fits(call.h0, h_shape))) return false;
    if (call.has_h0 && info.has_c && !(read(c0, call.c0) && fits(call.c0, c_shape))) return false;
    return fits(call.x, x_shape) && fits(call.y, y_shape) && fits(call.h_n, h_shape);
  }

  bool fill_weights(Call& call, const CellInfo& info, const py::dict& parameters,
                    const py::sequence& names) const {
    const Sizes& s = call.size;
    const int64_t planes = call.layers * s.directions, count = static_cast<int64_t>(names.size());
    call.per_direction = count / planes;
    call.bias = call.per_direction >= 4;
    if (count != planes * (2 + 2 * call.bias + s.projected)) return false;
    call.weights.resize(static_cast<size_t>(count));
    const int64_t gated = info.gates * s.hidden;
    for (int64_t i = 0; i < count; ++i) {
      Dense& w = call.weights[i];
      const py::object name = names[i];
      const py::handle weight = PyDict_GetItemWithError(parameters.ptr(), name.ptr());
      if (!weight || !read(weight, w) || w.bits != call.x.bits) return false;
      const int64_t which = i % call.per_direction;
      const int64_t input =
          i / call.per_direction < s.directions ? s.input : s.directions * s.state;
      const bool fits = which == 0               ? w.is({gated, input})
                        : which == 1             ? w.is({gated, s.state})
                        : call.bias && which < 4 ? w.is({gated})
                                                 : w.is({s.state, s.hidden});
      if (!fits) return false;
    }
    return true;
  }

  py::type types_[2];
  const ExchangeApi* api_;
};

}  // namespace

void bind_direct(py::module_& m) {
  py::class_<Direct>(m, "Direct",
                     "A stack of layers without gradients, past the dispatcher. Made of torch's "
                     "classes of a tensor and of a parameter; raises where the former has no "
                     "exchange API of DLPack 1.")
      .def(py::init<py::type, py::type>(), py::arg("tensor"), py::arg("parameter"))
      .def("run", &Direct::run, py::arg("cell"), py::arg("x"), py::arg("h0"), py::arg("c0"),
           py::arg("parameters"), py::arg("names"), py::arg("y"), py::arg("h_n"), py::arg("c_n"),
           "Computes y (T, N, D*P), h_n (L*D, N, P) and c_n (L*D, N, H), which are there already, "
           "from x (T, N, input), the initial states, zeros if None, and the named parameters; or "
           "does nothing and returns False if any tensor does not fit. One step of one layer may "
           "come without T and without L*D.");
}

}  // namespace fastrnn
