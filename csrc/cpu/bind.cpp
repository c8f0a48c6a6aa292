// The three ops on CPU tensors. Their schemas stand in fastrnn/ops.py.
#include "bind.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#define FASTRNN_NAMESPACE fastrnn::names_only
#define FASTRNN_FN static inline
#include "cells.h"

namespace fastrnn {

namespace {

const CellInfo kCells[] = {
#define X(Cell, cell_name)                                        \
  {cell_name, names_only::Cell::kGates, names_only::Cell::kSaved, \
   names_only::Cell::kState    ? 'c'                              \
   : names_only::Cell::kReadsH ? 'h'                              \
                               : '\0',                            \
   names_only::Cell::kSplit},
    FASTRNN_CELLS(X)
#undef X
};

}  // namespace

int cell_count() { return static_cast<int>(std::size(kCells)); }
const CellInfo& cell_at(int i) { return kCells[i]; }

int find_cell(const char* name, CellInfo& info) {
  for (int i = 0; i < cell_count(); ++i)
    if (strcmp(name, kCells[i].name) == 0) {
      info = kCells[i];
      return i;
    }
  return -1;
}

namespace {

template <class T>
T* data(const Tensor& t) {
  return t.numel() > 0 ? static_cast<T*>(t.data_ptr()) : nullptr;
}
template <class T>
T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}

struct Results {
  Tensor output, h_n, c_n, gates, cells, hidden;
};

template <class T>
Forward<T> pointers(const Call& call, const Results& r, bool save) {
  Forward<T> f = call.forward<T>();
  f.y = data<T>(r.output);
  f.h_n = data<T>(r.h_n);
  f.c_n = data<T>(r.c_n);
  f.save = save;
  f.gates = data<T>(r.gates);
  f.cells = data<T>(r.cells);
  f.hidden = data<T>(r.hidden);
  return f;
}

// function.operator()<T>() for the type of the call's numbers.
template <class F>
void for_type(const Call& call, F&& function) {
  switch (call.given.input.type) {
    case Type::kFloat:
      return function.template operator()<float>();
    case Type::kDouble:
      return function.template operator()<double>();
    case Type::kBf16:
      return function.template operator()<Bf16>();
    default:
      fail("the CPU kernels take float32, float64 and bfloat16");
  }
}

Results forward(const Arguments& a, bool save) {
  const Call& call = a.call;
  const Sizes& s = call.size;
  const bool c = call.info.keeps == 'c';
  const Results r{a.empty(a.output_shape()),
                  a.empty({s.directions, s.batch, s.state}),
                  c ? a.empty({s.directions, s.batch, s.hidden}) : a.empty({0}),
                  save ? a.empty({s.directions, s.rows, call.info.saved, s.hidden}) : a.empty({0}),
                  save && c ? a.empty({s.directions, s.rows, s.hidden}) : a.empty({0}),
                  save && s.projected ? a.empty({s.directions, s.rows, s.hidden}) : a.empty({0})};
  for_type(call, [&]<class T>() {
    cpu::forward_kernel<T>(call.cell)(pointers<T>(call, r, save), cpu::parallel());
  });
  return r;
}

std::tuple<Tensor, Tensor, Tensor> layer_inference(Tensor input, OptionalTensor batch_sizes,
                                                   Tensor h0, OptionalTensor c0,
                                                   std::vector<Tensor> weights, std::string cell,
                                                   std::string names, OptionalTensor reset,
                                                   OptionalTensor lengths, int64_t, double) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths);
  const Results r = forward(a, /*save=*/false);
  return {r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    Tensor input, OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, std::string cell, std::string names, OptionalTensor reset,
    OptionalTensor lengths, int64_t, double) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths);
  const Results r = forward(a, /*save=*/true);
  return {r.output, r.h_n, r.c_n, r.gates, r.cells, r.hidden};
}

// A tensor that forward made or a gradient of one, as the kernels want it.
OptionalTensor checked(const Call& call, const char* what, const OptionalTensor& t, int64_t numel) {
  if (!t) return std::nullopt;
  const View v = view(*t);
  FASTRNN_CHECK(
      t->numel() == numel && v.type == call.given.input.type && v.same_device(call.given.input),
      what, " does not fit the other arguments");
  return dense(*t);
}

// What comes into a backward call from outside the layer, and what goes out.
struct Cotangents {
  OptionalTensor output, h_n, c_n, cells;
  int64_t detach_every;
  double grad_clip;
};
struct Gradients {
  Tensor input, h0, c0;
  std::vector<Tensor> weights;
};

template <class T>
void backward(const Call& call, const Results& saved, const Cotangents& in, const Gradients& out) {
  Backward<T> b{};
  b.forward = pointers<T>(call, saved, /*save=*/true);
  b.dy = data<T>(in.output);
  b.dh_n = data<T>(in.h_n);
  b.dc_n = data<T>(in.c_n);
  b.dcells = data<T>(in.cells);
  b.detach_every = in.detach_every;
  b.grad_clip = in.grad_clip;
  b.dx = data<T>(out.input);
  b.dh0 = data<T>(out.h0);
  b.dc0 = data<T>(out.c0);
  b.need_weights = !out.weights.empty();
  std::vector<View> weights;
  for (const Tensor& w : out.weights) weights.push_back(view(w));
  for (int64_t d = 0; d < call.size.directions && b.need_weights; ++d)
    b.dweights[d] = call.names.of<T>(&weights[d * call.names.count]);
  cpu::backward_kernel<T>(call.cell)(b, cpu::parallel());
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
    OptionalTensor grad_cells, Tensor output, Tensor gates, Tensor cells, Tensor hidden,
    bool need_input, bool need_state, bool need_weights, Tensor input, OptionalTensor batch_sizes,
    Tensor h0, OptionalTensor c0, std::vector<Tensor> weights, std::string cell, std::string names,
    OptionalTensor reset, OptionalTensor lengths, int64_t detach_every, double grad_clip) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths);
  const Call& call = a.call;
  const Sizes& s = call.size;
  const bool c = call.info.keeps == 'c';
  const int64_t h_numel = s.directions * s.batch * s.state;
  const int64_t c_numel = s.directions * s.batch * s.hidden;
  const int64_t rows_numel = s.directions * s.rows * s.hidden;
  const Results saved{*checked(call, "output", output, s.rows * s.directions * s.state),
                      a.empty({0}),
                      a.empty({0}),
                      *checked(call, "gates", gates, rows_numel * call.info.saved),
                      *checked(call, "cells", cells, c ? rows_numel : 0),
                      *checked(call, "hidden", hidden, s.projected ? rows_numel : 0)};
  FASTRNN_CHECK(detach_every >= 0 && grad_clip >= 0, "detach_every and grad_clip must not be ",
                "negative, got ", detach_every, " and ", grad_clip);
  const Cotangents in{checked(call, "grad_output", grad_output, saved.output.numel()),
                      checked(call, "grad_h_n", grad_h_n, h_numel),
                      c ? checked(call, "grad_c_n", grad_c_n, c_numel) : std::nullopt,
                      c ? checked(call, "grad_cells", grad_cells, rows_numel) : std::nullopt,
                      detach_every,
                      grad_clip};

  const Given& given = call.given;
  Gradients out{need_input ? a.empty_like_view(given.input) : a.empty({0}),
                need_state ? a.empty_like_view(given.h0) : a.empty({0}),
                need_state && c ? a.empty_like_view(*given.c0) : a.empty({0}),
                {}};
  for (int64_t i = 0; i < given.weight_count && need_weights; ++i)
    out.weights.push_back(a.empty_like_view(given.weights[i]));
  for_type(call, [&]<class T>() { backward<T>(call, saved, in, out); });
  return {out.input, out.h0, out.c0, out.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_inference", TORCH_BOX(&layer_inference));
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

}  // namespace fastrnn
