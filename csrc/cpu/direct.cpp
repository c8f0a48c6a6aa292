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

#include "call.h"
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

Type type_of(const DLTensor& t) {
  constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6;
  const auto is = [&](uint8_t code, uint8_t bits) { return t.code == code && t.bits == bits; };
  if (t.lanes != 1) return Type::kOther;
  if (is(kFloat, 32)) return Type::kFloat;
  if (is(kFloat, 64)) return Type::kDouble;
  if (is(kBfloat, 16)) return Type::kBf16;
  if (is(kBool, 8)) return Type::kBool;
  return is(kInt, 64) ? Type::kInt64 : Type::kOther;
}

int64_t itemsize(Type type) { return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2; }

// Not fitting is no error here: the op takes the call, and says what is wrong.
struct Misfit : std::runtime_error {
  Misfit() : std::runtime_error("does not fit") {}
};

// A stack of layers, checked. Every view is of memory that the caller keeps.
struct Layers {
  std::vector<View> weights;       // of all layers and directions, in torch's order
  std::vector<py::object> owners;  // of the weights, which another thread may replace meanwhile
  std::vector<View> ys;            // the output of each layer, or of the last one alone
  std::vector<View> saved;         // gates, cells and hidden of each layer, or nothing
  View h_n, c_n;
  std::vector<double> zeros;  // initial states, where none are given
  std::vector<std::unique_ptr<Call>> calls;
};

template <class T>
void compute(const Layers& all) {
  std::unique_ptr<T[]> below, above;  // outputs of layers where nobody wants them
  const size_t count = all.calls.size();
  const T* x = nullptr;
  for (size_t k = 0; k < count; ++k) {
    const Call& call = *all.calls[k];
    const Sizes& s = call.size;
    const int64_t first = static_cast<int64_t>(k) * s.directions;
    Forward<T> f = call.forward<T>();
    if (k > 0) f.x = x;
    f.h_n = static_cast<T*>(all.h_n.data) + first * s.batch * s.state;
    if (f.c0) f.c_n = static_cast<T*>(all.c_n.data) + first * s.batch * s.hidden;
    if (all.ys.size() == count) {
      f.y = static_cast<T*>(all.ys[k].data);
    } else if (k + 1 == count) {
      f.y = static_cast<T*>(all.ys[0].data);
    } else {
      above.reset(new T[static_cast<size_t>(s.rows * s.directions * s.state)]);
      f.y = above.get();
    }
    if (!all.saved.empty()) {
      f.save = true;
      f.gates = static_cast<T*>(all.saved[3 * k].data);
      f.cells = static_cast<T*>(all.saved[3 * k + 1].data);
      f.hidden = static_cast<T*>(all.saved[3 * k + 2].data);
    }
    cpu::forward_kernel<T>(call.cell)(f, cpu::parallel());
    x = f.y;
    below = std::move(above);
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
  bool run(std::string_view cell, std::string_view names, int64_t directions, py::handle x,
           py::handle batch_sizes, py::handle h0, py::handle c0, const py::dict& parameters,
           const py::sequence& weights, py::handle reset, py::handle lengths,
           const py::sequence& ys, py::handle h_n, py::handle c_n,
           const py::sequence& saved) const {
    Layers all;
    try {
      all.weights.reserve(weights.size());
      all.owners.reserve(weights.size());
      for (const py::handle name : weights) {
        const py::handle weight = PyDict_GetItemWithError(parameters.ptr(), name.ptr());
        if (!weight) throw Misfit();
        all.weights.push_back(read(weight));
        if (!plain(weight, all.weights.back().data)) throw Misfit();
        all.owners.push_back(py::reinterpret_borrow<py::object>(weight));
      }
      for (const py::handle y : ys) all.ys.push_back(read(y));
      for (const py::handle t : saved) all.saved.push_back(read(t));
      all.h_n = lifted(read(h_n), 3);
      if (!c_n.is_none()) all.c_n = lifted(read(c_n), 3);
      for (const py::handle given : {x, h0, c0})
        if (!given.is_none() && negated(given)) throw Misfit();
      Given given;
      given.cell = cell;
      given.names = names;
      given.input = read(x);
      given.batch_sizes = optional(batch_sizes, 1);
      if (!given.batch_sizes) given.input = lifted(given.input, 3);
      given.reset = optional(reset, 2);
      given.lengths = optional(lengths, 1);
      given.h0 = initial(all, h0, all.h_n);
      if (!c_n.is_none()) {
        if (h0.is_none() != c0.is_none()) throw Misfit();
        given.c0 = initial(all, c0, all.c_n);
      }
      fill(all, given, directions);
    } catch (const std::runtime_error&) {
      return false;
    }
    const Type type = all.calls[0]->given.input.type;
    const py::gil_scoped_release unlocked;
    if (type == Type::kFloat) {
      compute<float>(all);
    } else if (type == Type::kBf16) {
      compute<Bf16>(all);
    } else {
      compute<double>(all);
    }
    return true;
  }

 private:
  // Subclasses of a tensor may be anything.
  View read(py::handle object) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != types_[0].ptr() && type != types_[1].ptr()) throw Misfit();
    DLTensor t;
    if (api_->dltensor_from_py_object(object.ptr(), &t) != 0) {
      PyErr_Clear();
      throw Misfit();
    }
    View v;
    v.shape(t.ndim, t.shape, t.strides);
    if (t.device_type != kCpu || !v.dense || (t.data == nullptr && v.numel() > 0)) throw Misfit();
    v.data = static_cast<char*>(t.data) + t.byte_offset;
    v.type = type_of(t);
    return v;
  }
  // Whether the numbers of a tensor are stored negated, as those of the imaginary part of a
  // conjugate, which DLPack does not say.
  bool negated(py::handle object) const {
    PyObject* const answer = PyObject_CallOneArg(is_neg_.ptr(), object.ptr());
    if (answer == nullptr) {
      PyErr_Clear();
      throw Misfit();
    }
    Py_DECREF(answer);  // True and False outlive it
    return answer == Py_True;
  }
  // Whether a weight is not: asked once of each while it keeps its place, since asking all of them
  // would take 2 % of the shortest call.
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
  // One step may come without T, the states of one layer without L*D.
  static View lifted(View v, int dims) {
    if (v.dims != dims - 1) return v;
    std::copy_backward(v.size, v.size + v.dims, v.size + dims);
    v.size[0] = 1;
    v.dims = dims;
    return v;
  }
  std::optional<View> optional(py::handle object, int dims) const {
    if (object.is_none()) return std::nullopt;
    return lifted(read(object), dims);
  }
  // The states given, or zeros like the final ones.
  View initial(Layers& all, py::handle state, const View& like) const {
    if (!state.is_none()) return lifted(read(state), 3);
    View v = like;
    if (all.zeros.empty())
      all.zeros.resize(static_cast<size_t>(std::max(all.h_n.numel(), all.c_n.numel())));
    v.data = all.zeros.data();
    return v;
  }

  // The call of each layer, and that what it writes has room.
  static void fill(Layers& all, Given given, int64_t directions) {
    if (directions != 1 && directions != 2) throw Misfit();
    const int64_t size = itemsize(given.input.type);
    const auto per_layer = static_cast<size_t>(directions * WeightNames(given.names).count);
    const size_t count = all.weights.size() / per_layer;
    const View h0 = given.h0;
    const std::optional<View> c0 = given.c0;
    if (count == 0 || count * per_layer != all.weights.size()) throw Misfit();
    if (all.ys.size() != 1 && all.ys.size() != count) throw Misfit();
    if (!all.saved.empty() && (all.saved.size() != 3 * count || all.ys.size() != count))
      throw Misfit();
    const auto planes = static_cast<int64_t>(count) * directions;
    for (size_t k = 0; k < count; ++k) {
      if (h0.dims != 3 || h0.size[0] != planes) throw Misfit();
      const int64_t first = static_cast<int64_t>(k) * directions;
      given.h0 = h0.planes(first, directions, size);
      if (c0) given.c0 = c0->planes(first, directions, size);
      given.weights = &all.weights[k * per_layer];
      given.weight_count = static_cast<int64_t>(per_layer);
      const Call& call = *all.calls.emplace_back(std::make_unique<Call>(given));
      const Sizes& s = call.size;
      if (s.rows == 0) throw Misfit();
      given.input.size[given.input.dims - 1] = s.directions * s.state;
      if (all.ys.size() == count) check_output(call, all.ys[k], given.input);
      if (!all.saved.empty()) check_saved(call, &all.saved[3 * k]);
    }
    const Call& last = *all.calls.back();
    const Sizes& s = last.size;
    if (all.ys.size() == 1) check_output(last, all.ys[0], given.input);
    last.check("h_n", all.h_n, {planes, s.batch, s.state});
    if (c0) {
      last.check("c0", *c0, {planes, s.batch, s.hidden});
      last.check("c_n", all.c_n, {planes, s.batch, s.hidden});
    }
  }
  static void check_output(const Call& call, const View& y, const View& like) {
    const View whole = lifted(y, like.dims);
    if (whole.dims != like.dims || !std::equal(like.size, like.size + like.dims, whole.size))
      throw Misfit();
    call.check_type("output", y);
  }
  static void check_saved(const Call& call, const View* saved) {
    const Sizes& s = call.size;
    const int64_t per_row = s.directions * s.rows * s.hidden;
    const int64_t counts[] = {per_row * call.info.saved, call.info.keeps == 'c' ? per_row : 0,
                              s.projected ? per_row : 0};
    for (int i = 0; i < 3; ++i)
      if (saved[i].numel() != counts[i] || saved[i].type != call.given.input.type) throw Misfit();
  }

  struct Place {
    py::object reference;  // a weak one: another object may come to the same address
    const void* data;
  };
  static constexpr size_t kRemembered = 4096;

  py::type types_[2];
  py::object is_neg_;
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
      .def("run", &Direct::run, py::arg("cell"), py::arg("names"), py::arg("directions"),
           py::arg("x"), py::arg("batch_sizes"), py::arg("h0"), py::arg("c0"),
           py::arg("parameters"), py::arg("weights"), py::arg("reset"), py::arg("lengths"),
           py::arg("ys"), py::arg("h_n"), py::arg("c_n"), py::arg("saved"),
           "Computes into tensors that are there already: ys, the output of the last layer or of "
           "each, h_n (L*D, N, P) and c_n (L*D, N, H); with `saved`, gates, cells and hidden of "
           "each layer, too. From x, initial states, zeros if None, and `parameters`, a dict, by "
           "the names in `weights`; `names` are those of a direction, as in fastrnn/table.py. Does "
           "nothing and returns False if any tensor does not fit. One step of one layer may come "
           "without T and without L*D.");
}

}  // namespace fastrnn
