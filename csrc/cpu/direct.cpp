// fastrnn._C.Direct: layers from Python's tensors to the kernels with no dispatcher in between,
// which takes longer than a layer of one step.
//
// Tensors are seen through DLPack's C exchange API, which torch.Tensor carries: it ties the object
// to no version of torch. Whatever does not fit in rank, size, dtype, device or memory layout is
// left to the op, which can do more and has the error messages.
#include "cpu/direct.h"

#include <memory>
#include <string>
#include <vector>

#include "call.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "results.h"

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
  if (is(kFloat, 16)) return Type::kHalf;
  if (is(kBool, 8)) return Type::kBool;
  return is(kInt, 64) ? Type::kInt64 : Type::kOther;
}

// Not fitting is no error here: the op takes the call, and says what is wrong.
struct Misfit : std::runtime_error {
  Misfit() : std::runtime_error("does not fit") {}
};

// The fields of a Call in Python, in the order of fastrnn/call.py.
enum Field { kInput, kBatchSizes, kH0, kC0, kWeights, kCell, kNames, kReset, kLengths };
constexpr int kDetachEvery = kLengths + 1, kGradClip = kDetachEvery + 1,
              kFloatParts = kGradClip + 1;

// What several tensors of a call share. Every view is of memory that the caller keeps.
struct Inputs {
  std::vector<View> weights;       // of all layers and directions, in torch's order
  std::vector<py::object> owners;  // of the weights, which another thread may replace meanwhile
  std::vector<double> zeros;       // initial states, where none are given
};

// A stack of layers, checked.
struct Layers : Inputs {
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<Results> results;  // of each layer; an output that nobody wants is absent
};

// Whether the kernels of the type take such layers.
template <class T>
bool compute(const Layers& all, bool save) {
  std::unique_ptr<T[]> below, above;  // outputs that nobody wants
  void* x = nullptr;
  for (size_t k = 0; k < all.calls.size(); ++k) {
    const Call& call = *all.calls[k];
    Forward<T> f = forward_of<T>(call, all.results[k], save);
    if (k > 0) f.x = static_cast<const T*>(x);
    if (f.y == nullptr) {
      above.reset(new T[static_cast<size_t>(Counts(call).output)]);
      f.y = above.get();
    }
    if constexpr (std::is_same_v<T, F16>) {
      auto* const step = cpu::kernels().half_step[call.cell];
      if (save || step == nullptr || !step(f, cpu::parallel())) return false;
    } else {
      cpu::run_forward<T>(cpu::kernels(), call.cell, f, cpu::parallel());
    }
    x = f.y;
    below = std::move(above);
  }
  return true;
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
  bool run(const py::tuple& call, int64_t directions, py::handle parameters, const py::tuple& ys,
           py::handle h_n, py::handle c_n, const py::tuple& saved) const {
    Layers all;
    try {
      const View h = lifted(read(h_n), 3), c = c_n.is_none() ? View{} : lifted(read(c_n), 3);
      fill(all, given(all, call, parameters, h, c), directions, h, c, ys, saved);
    } catch (const std::runtime_error&) {
      return false;
    }
    const py::gil_scoped_release unlocked;
    if (all.calls[0]->given.input.type == Type::kHalf) return compute<F16>(all, !saved.empty());
    return for_type(*all.calls[0], [&]<class T>() { return compute<T>(all, !saved.empty()); });
  }

  // See bind_direct.
  bool run_backward(const py::tuple& call, const py::tuple& cotangents, const py::tuple& saved,
                    const py::tuple& gradients) const {
    Inputs inputs;
    std::optional<Call> c;
    Results kept;
    Cotangents in;
    Gradients out;
    std::vector<View> weights;
    try {
      c.emplace(given(inputs, call, py::none(), View{}, View{}));
      const int rank = c->given.batch_sizes ? 2 : 3;
      kept = {
          lifted(plain(saved[0]), rank), {}, {}, plain(saved[1]), plain(saved[2]), plain(saved[3])};
      in = {lifted(plain(cotangents[0]), rank),
            lifted(plain(cotangents[1]), 3),
            lifted(plain(cotangents[2]), 3),
            plain(cotangents[3]),
            plain(cotangents[4]),
            py::cast<int64_t>(call[kDetachEvery]),
            py::cast<double>(call[kGradClip])};
      check_backward(*c, kept, in);
      if (c->given.input.type == Type::kHalf) throw Misfit();
      const Given& g = c->given;
      out = {like(*c, gradients[0], g.input), like(*c, gradients[1], g.h0),
             like(*c, gradients[2], g.c0 ? *g.c0 : View{})};
      const py::handle list = gradients[3];
      const Py_ssize_t count = list.is_none() ? 0 : size_of(list);
      out.of_rows = count > 0 && read(item(list, 0)).dims > inputs.weights.at(0).dims;
      if (out.of_rows && !rows_apart(*c)) throw Misfit();
      for (Py_ssize_t i = 0; i < count; ++i) {
        const View& weight = inputs.weights.at(static_cast<size_t>(i));
        const View shape = out.of_rows ? of_rows(weight, c->size.batch) : weight;
        weights.push_back(like(*c, item(list, i), shape));
        if (weights.back().absent()) throw Misfit();  // all of them are made, or none
      }
      if (!weights.empty() && weights.size() != inputs.weights.size()) throw Misfit();
      out.weights = weights.empty() ? nullptr : weights.data();
    } catch (const std::runtime_error&) {
      return false;
    }
    const py::gil_scoped_release unlocked;
    for_type(*c, [&]<class T>() {
      cpu::run_backward<T>(cpu::kernels(), c->cell, backward_of<T>(*c, kept, in, out),
                           cpu::parallel());
    });
    return true;
  }

 private:
  // Lists and tuples, whose items are borrowed.
  static Py_ssize_t size_of(py::handle sequence) {
    if (!PyList_Check(sequence.ptr()) && !PyTuple_Check(sequence.ptr())) throw Misfit();
    return PySequence_Fast_GET_SIZE(sequence.ptr());
  }
  static py::handle item(py::handle sequence, Py_ssize_t i) {
    return PySequence_Fast_GET_ITEM(sequence.ptr(), i);
  }
  static std::string_view text(py::handle object) {
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<size_t>(size)};
  }

  // A Call in Python. Where there are `parameters`, a dict, its weights are names in them. Initial
  // states that are None are zeros like the final ones.
  Given given(Inputs& inputs, const py::tuple& call, py::handle parameters, const View& h_n,
              const View& c_n) const {
    if (call.size() <= kLengths) throw Misfit();
    const auto field = [&](Field i) { return py::handle(PyTuple_GET_ITEM(call.ptr(), i)); };
    const Py_ssize_t count = size_of(field(kWeights));
    inputs.weights.reserve(static_cast<size_t>(count));
    inputs.owners.reserve(static_cast<size_t>(count));
    // All weights are taken before the first is read, because reading may release the lock of the
    // interpreter: another thread then replaces all of them or none.
    for (Py_ssize_t i = 0; i < count; ++i) {
      py::handle weight = item(field(kWeights), i);
      if (!parameters.is_none()) weight = PyDict_GetItemWithError(parameters.ptr(), weight.ptr());
      if (!weight) throw Misfit();
      inputs.owners.push_back(py::reinterpret_borrow<py::object>(weight));
    }
    for (const py::object& weight : inputs.owners) inputs.weights.push_back(plain(weight));
    Given given{.cell = text(field(kCell)), .names = WeightNames(text(field(kNames)))};
    given.input = plain(field(kInput));
    given.batch_sizes = optional(field(kBatchSizes), 1);
    if (!given.batch_sizes) given.input = lifted(given.input, 3);
    given.reset = optional(field(kReset), 2);
    given.lengths = optional(field(kLengths), 1);
    const auto state = [&](Field i, const View& like) {
      return field(i).is_none() ? zeros(inputs, h_n, c_n, like) : lifted(plain(field(i)), 3);
    };
    given.h0 = state(kH0, h_n);
    if (!c_n.absent() || !field(kC0).is_none()) {
      if (field(kH0).is_none() != field(kC0).is_none()) throw Misfit();
      given.c0 = state(kC0, c_n);
    }
    given.weights = inputs.weights.data();
    given.weight_count = static_cast<int64_t>(count);
    if (call.size() > kFloatParts) given.parts = py::cast<int64_t>(call[kFloatParts]);
    return given;
  }
  static View zeros(Inputs& inputs, const View& h_n, const View& c_n, const View& like) {
    View v = like;
    if (inputs.zeros.empty())
      inputs.zeros.resize(static_cast<size_t>(std::max(h_n.numel(), c_n.numel())));
    v.data = inputs.zeros.data();
    return v;
  }

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
  // A tensor whose numbers are stored as they are; absent for None.
  View plain(py::handle object) const {
    if (object.is_none()) return {};
    const View v = read(object);
    if (negated(object)) throw Misfit();
    return v;
  }
  // Whether the kernels can give weight gradients of each row.
  static bool rows_apart(const Call& call) {
    const Given& g = call.given;
    const bool rounds = g.input.type != Type::kFloat && g.input.type != Type::kDouble;
    return !(rounds || g.lengths || g.batch_sizes || call.info.program);
  }
  static View of_rows(View v, int64_t rows) {
    v = lifted(v, v.dims + 1);
    v.size[0] = rows;
    return v;
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

  // The call of each layer, and that what it writes has room.
  void fill(Layers& all, Given given, int64_t directions, const View& h_n, const View& c_n,
            const py::tuple& ys, const py::tuple& saved) const {
    if (directions != 1 && directions != 2) throw Misfit();
    const auto per_layer = static_cast<size_t>(directions * given.names.count);
    const size_t count = all.weights.size() / per_layer;
    const bool each = ys.size() == count;  // whether the output of each layer is wanted
    if (count == 0 || count * per_layer != all.weights.size()) throw Misfit();
    if (!each && ys.size() != 1) throw Misfit();
    if (!saved.empty() && (saved.size() != 3 * count || !each)) throw Misfit();
    const View h0 = given.h0;
    const std::optional<View> c0 = given.c0;
    const auto planes = static_cast<int64_t>(count) * directions;
    for (const View* state : {&h0, c0 ? &*c0 : &h0})
      if (state->dims != 3 || state->size[0] != planes) throw Misfit();
    const int64_t bytes = given.input.type == Type::kDouble  ? 8
                          : given.input.type == Type::kFloat ? 4
                                                             : 2;
    for (size_t k = 0; k < count; ++k) {
      const auto planes_of = [&](const View& v) {
        return v.absent() ? v : v.planes(static_cast<int64_t>(k) * directions, directions, bytes);
      };
      given.h0 = planes_of(h0);
      if (c0) given.c0 = planes_of(*c0);
      given.weights = &all.weights[k * per_layer];
      given.weight_count = static_cast<int64_t>(per_layer);
      const Call& call = *all.calls.emplace_back(std::make_unique<Call>(given));
      const Sizes& s = call.size;
      if (s.rows == 0) throw Misfit();
      given.input.size[given.input.dims - 1] = s.directions * s.state;
      Results& r = all.results.emplace_back();
      if (k == 0) {
        call.check("h_n", h_n, {planes, s.batch, s.state});
        if (c0) call.check("c_n", c_n, {planes, s.batch, s.cell});
      }
      r.h_n = planes_of(h_n);
      r.c_n = planes_of(c_n);
      if (each || k + 1 == count) r.output = like(call, ys[each ? k : 0], given.input);
      if (saved.empty()) continue;
      r.gates = plain(saved[3 * k]);
      r.cells = plain(saved[3 * k + 1]);
      r.hidden = plain(saved[3 * k + 2]);
      check_saved(call, r);
    }
  }
  // A tensor to write, whose shape is that of `shape`; absent for None.
  View like(const Call& call, py::handle object, const View& shape) const {
    if (object.is_none()) return {};
    const View v = lifted(read(object), shape.dims);
    if (v.dims != shape.dims || !std::equal(v.size, v.size + v.dims, shape.size)) throw Misfit();
    call.check_type("output", v);
    return v;
  }

  py::type types_[2];
  py::object is_neg_;
  const ExchangeApi* api_;
};

}  // namespace

void bind_direct(py::module_& m) {
  py::class_<Direct>(m, "Direct",
                     "Layers past the dispatcher and autograd. Made of torch's classes of a tensor "
                     "and of a parameter; raises where the former has no exchange API of DLPack 1. "
                     "Both functions take a Call of fastrnn/call.py, compute into tensors that are "
                     "there already, and do nothing and return False if any tensor does not fit.")
      .def(py::init<py::type, py::type>(), py::arg("tensor"), py::arg("parameter"))
      .def("run", &Direct::run, py::arg("call"), py::arg("directions"), py::arg("parameters"),
           py::arg("ys"), py::arg("h_n"), py::arg("c_n"), py::arg("saved"),
           "A stack of layers: a Call with the states and the weights of all. Where `parameters` "
           "is a dict, the weights are names in it. Initial states that are None are zeros. Writes "
           "ys, the output of the last layer or of each, h_n (L*D, N, P), c_n (L*D, N, H) or None "
           "and, where there are any, `saved`: gates, cells and hidden of each layer. One step of "
           "one layer may come without T and without L*D.")
      .def("run_backward", &Direct::run_backward, py::arg("call"), py::arg("cotangents"),
           py::arg("saved"), py::arg("gradients"),
           "The gradients of one layer, from Cotangents and Saved of fastrnn/results.py, into "
           "`gradients`, like Gradients there. None is zero, nothing, or not wanted. Gradients of "
           "weights may have the batch for a first dimension: they are then those of each row. One "
           "step may come without T and D.");
}

}  // namespace fastrnn
