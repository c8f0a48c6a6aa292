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
#include <unordered_map>
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
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

// Strides of a dimension of size 1 play no part.
struct Dense : DLTensor {
  // On the CPU, of this shape, and lying densely.
  bool is(std::initializer_list<int64_t> sizes) const {
    const auto rank = static_cast<int32_t>(sizes.size());
    if (device_type != kCpu || lanes != 1 || data == nullptr || ndim != rank) return false;
    int64_t stride = 1;
    for (int32_t i = rank - 1; i >= 0; --i) {
      if (shape[i] != sizes.begin()[i]) return false;
      if (shape[i] != 1 && strides && strides[i] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }
  bool is(uint8_t kind, uint8_t width) const { return code == kind && bits == width; }
  int64_t last() const { return ndim > 0 ? shape[ndim - 1] : 0; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(static_cast<char*>(data) + byte_offset);
  }
};

// What a call is made of. Layers and directions are the planes of h; P, H and widths as in layer.h.
struct Call {
  Dense x, h0, c0, y, h_n, c_n;
  bool has_h0, bias;
  std::vector<Dense> weights;      // of all layers and directions, in torch's order
  std::vector<py::object> owners;  // of the weights, which another thread may replace meanwhile
  int64_t layers, per_direction;
  std::vector<int64_t> active, offset;
  Sizes size;  // of the first layer
};

template <class T>
void compute(const Call& call, ForwardKernel<T>* kernel, bool has_c) {
  const Sizes& s = call.size;
  const int64_t h_plane = s.batch * s.state, c_plane = s.batch * s.hidden;
  const int64_t width = s.directions * s.state, planes = call.layers * s.directions;
  const std::vector<T> zero(call.has_h0 ? 0 : planes * (has_c ? c_plane : h_plane));
  std::unique_ptr<T[]> below, above;  // outputs of all layers but the last
  Forward<T> f{};
  f.size = s;
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
    is_neg_ = types_[0].attr("is_neg");
    api_ = static_cast<const ExchangeApi*>(api);
    if (api_->major != 1 || api_->dltensor_from_py_object == nullptr)
      throw py::value_error("no DLPack 1 with a tensor that is borrowed");
  }

  // See bind_direct.
  bool run(const std::string& cell, py::handle x, py::handle batch_sizes, py::handle h0,
           py::handle c0, py::dict parameters, py::sequence names, py::handle y, py::handle h_n,
           py::handle c_n) const {
    CellInfo info;
    const int position = find_cell(cell.c_str(), info);
    Call call;
    if (position < 0 || !read(x, call.x) || negated(x)) return false;
    const bool is_float = call.x.is(kFloat, 32), is_bf16 = call.x.is(kBfloat, 16);
    if (!is_float && !is_bf16 && !call.x.is(kFloat, 64)) return false;
    if (!fill_states(call, info, h0, c0, h_n, c_n) || !fill_steps(call, batch_sizes, y) ||
        !fill_weights(call, info, parameters, names))
      return false;
    const Kernels& kernels = cpu::kernels();
    const py::gil_scoped_release unlocked;
    if (is_float) {
      compute<float>(call, kernels.forward_float[position], info.has_c);
    } else if (is_bf16) {
      compute<Bf16>(call, kernels.forward_bf16[position], info.has_c);
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
  // Of a tensor of the user's. Memory may be stored negated, as of the imaginary part of a
  // conjugate, which DLPack does not say.
  bool negated(py::handle object) const {
    PyObject* const answer = PyObject_CallOneArg(is_neg_.ptr(), object.ptr());
    if (answer == nullptr) throw py::error_already_set();
    Py_DECREF(answer);  // True and False outlive it
    return answer == Py_True;
  }
  // Whether a weight is not: asked once of each while it keeps its place, since asking all of them
  // would take 2% of the shortest call.
  bool plain(py::handle weight, const void* data) const {
    const auto known = plain_.find(weight.ptr());
    if (known != plain_.end() && known->second.data == data &&
        PyWeakref_GetObject(known->second.reference.ptr()) == weight.ptr())
      return true;
    if (negated(weight)) return false;
    if (plain_.size() == kRemembered) plain_.clear();
    plain_[weight.ptr()] = {py::weakref(weight), data};
    return true;
  }
  bool read_like(const Call& call, py::handle object, Dense& out) const {
    return read(object, out) && out.is(call.x.code, call.x.bits);
  }

  // The final states say how many layers, rows and units there are. Those of one layer may come
  // without the layer.
  bool fill_states(Call& call, const CellInfo& info, py::handle h0, py::handle c0, py::handle h_n,
                   py::handle c_n) const {
    if (!read_like(call, h_n, call.h_n)) return false;
    const bool planes = call.h_n.ndim == 3;
    if (!planes && call.h_n.ndim != 2) return false;
    const int64_t* const shape = call.h_n.shape;
    Sizes& s = call.size;
    s = {};
    call.layers = planes ? shape[0] : 1;  // and directions, which fill_steps finds
    s.batch = shape[planes];
    s.state = s.hidden = call.h_n.last();
    const auto fits = [&](const Dense& t, int64_t width) {
      return planes ? t.is({call.layers, s.batch, width}) : t.is({s.batch, width});
    };
    if (!fits(call.h_n, s.state)) return false;
    if (info.has_c) {
      if (!read_like(call, c_n, call.c_n)) return false;
      s.hidden = call.c_n.last();
      if (!fits(call.c_n, s.hidden)) return false;
    }
    s.projected = s.hidden != s.state;
    call.has_h0 = !h0.is_none();
    if (!call.has_h0) return true;
    if (!read_like(call, h0, call.h0) || !fits(call.h0, s.state) || negated(h0)) return false;
    return !info.has_c || (read_like(call, c0, call.c0) && fits(call.c0, s.hidden) && !negated(c0));
  }

  // Input and output are (T, N, ...), (rows, ...) of a packed sequence or (N, ...) of one step.
  bool fill_steps(Call& call, py::handle batch_sizes, py::handle y) const {
    Sizes& s = call.size;
    const bool packed = !batch_sizes.is_none(), whole = call.x.ndim == 3;
    if (packed ? whole : !whole && call.x.ndim != 2) return false;
    if (packed) {
      if (!fill_active(call, batch_sizes)) return false;
    } else {
      call.active.assign(static_cast<size_t>(whole ? call.x.shape[0] : 1), s.batch);
    }
    for (const int64_t count : call.active) {
      call.offset.push_back(s.rows);
      s.rows += count;
    }
    s.steps = static_cast<int64_t>(call.active.size());
    s.active = call.active.data();
    s.offset = call.offset.data();
    s.input = call.x.last();
    if (s.rows == 0 || s.input == 0 || s.state == 0 || s.hidden == 0) return false;

    if (!read_like(call, y, call.y)) return false;
    s.directions = call.y.last() / s.state;
    if ((s.directions != 1 && s.directions != 2) || call.layers % s.directions != 0) return false;
    call.layers /= s.directions;
    const auto fits = [&](const Dense& t, int64_t width) {
      return whole ? t.is({s.steps, s.batch, width}) : t.is({s.rows, width});
    };
    return call.layers > 0 && fits(call.x, s.input) && fits(call.y, s.directions * s.state);
  }

  bool fill_active(Call& call, py::handle batch_sizes) const {
    Dense counts;
    if (!read(batch_sizes, counts) || counts.code != kInt || counts.bits != 64) return false;
    if (negated(batch_sizes)) return false;
    if (!counts.is({counts.last()})) return false;
    call.active.assign(counts.as<int64_t>(), counts.as<int64_t>() + counts.last());
    int64_t before = call.size.batch;
    for (const int64_t count : call.active) {
      if (count < 1 || count > before) return false;
      before = count;
    }
    return call.active[0] == call.size.batch;
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
      if (!weight || !read_like(call, weight, w) || !plain(weight, w.data)) return false;
      call.owners.push_back(py::reinterpret_borrow<py::object>(weight));
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
  py::object is_neg_;
  struct Place {
    py::object reference;  // a weak one: another object may come to the same address
    const void* data;
  };
  static constexpr size_t kRemembered = 4096;
  mutable std::unordered_map<PyObject*, Place> plain_;  // under the GIL
  const ExchangeApi* api_;
};

}  // namespace

void bind_direct(py::module_& m) {
  py::class_<Direct>(m, "Direct",
                     "A stack of layers without gradients, past the dispatcher. Made of torch's "
                     "classes of a tensor and of a parameter; raises where the former has no "
                     "exchange API of DLPack 1.")
      .def(py::init<py::type, py::type>(), py::arg("tensor"), py::arg("parameter"))
      .def("run", &Direct::run, py::arg("cell"), py::arg("x"), py::arg("batch_sizes"),
           py::arg("h0"), py::arg("c0"), py::arg("parameters"), py::arg("names"), py::arg("y"),
           py::arg("h_n"), py::arg("c_n"),
           "Computes y (T, N, D*P), h_n (L*D, N, P) and c_n (L*D, N, H), which are there already, "
           "from x (T, N, input), the initial states, zeros if None, and the named parameters; or "
           "does nothing and returns False if any tensor does not fit. With batch_sizes x and y "
           "have rows in the place of T, N, as in a PackedSequence. One step of one layer may come "
           "without T and without L*D.");
}

}  // namespace fastrnn
