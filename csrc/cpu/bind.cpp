// The three ops on CPU tensors. Their schemas stand in fastrnn/ops.py.
#include "bind.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#define FASTRNN_NAMESPACE fastrnn::names_only
#define FASTRNN_FN static inline
#include "cells.h"

namespace fastrnn {

int find_cell(const char* name, CellInfo& info) {
  static const CellInfo kCells[] = {
#define X(Cell, cell_name) \
  {cell_name, names_only::Cell::kGates, names_only::Cell::kSaved, names_only::Cell::kState},
      FASTRNN_CELLS(X)
#undef X
  };
  for (int i = 0; i < static_cast<int>(std::size(kCells)); ++i)
    if (strcmp(name, kCells[i].name) == 0) {
      info = kCells[i];
      return i;
    }
  return -1;
}

namespace {

using torch::headeronly::ScalarType;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* data(const OptionalTensor& t) {
  return t && t->numel() > 0 ? data<T>(*t) : nullptr;
}

struct Results {
  Tensor output, h_n, c_n, gates, cells, hidden;
};

template <class T>
Forward<T> pointers(const Arguments& a, const Results& r, bool save) {
  Forward<T> f{};
  f.size = a.size;
  for (int64_t d = 0; d < a.size.directions; ++d) {
    const Tensor* w = &a.weights[d * a.per_direction];
    f.weights[d] = {data<T>(w[0]), data<T>(w[1]), a.bias ? data<T>(w[2]) : nullptr,
                    a.bias ? data<T>(w[3]) : nullptr,
                    a.size.projected ? data<T>(w[a.per_direction - 1]) : nullptr};
  }
  f.x = data<T>(a.input);
  f.h0 = data<T>(a.h0);
  f.c0 = data<T>(a.c0);
  f.reset = data<bool>(a.reset);
  f.y = data<T>(r.output);
  f.h_n = data<T>(r.h_n);
  f.c_n = data<T>(r.c_n);
  f.save = save;
  f.gates = data<T>(r.gates);
  f.cells = data<T>(r.cells);
  f.hidden = data<T>(r.hidden);
  return f;
}

void check_dtype(const Arguments& a) {
  FASTRNN_CHECK(a.dtype() == ScalarType::Float || a.dtype() == ScalarType::Double ||
                    a.dtype() == ScalarType::BFloat16,
                "the CPU kernels take float32, float64 and bfloat16");
}

Results forward(const Arguments& a, bool save) {
  check_dtype(a);
  const Sizes& s = a.size;
  const bool c = a.info.has_c;
  const Results r{a.empty(a.output_shape()),
                  a.empty({s.directions, s.batch, s.state}),
                  c ? a.empty({s.directions, s.batch, s.hidden}) : a.empty({0}),
                  save ? a.empty({s.directions, s.rows, a.info.saved, s.hidden}) : a.empty({0}),
                  save && c ? a.empty({s.directions, s.rows, s.hidden}) : a.empty({0}),
                  save && s.projected ? a.empty({s.directions, s.rows, s.hidden}) : a.empty({0})};
  if (a.dtype() == ScalarType::Float) {
    cpu::kernels().forward_float[a.cell](pointers<float>(a, r, save), cpu::parallel());
  } else if (a.dtype() == ScalarType::BFloat16) {
    cpu::kernels().forward_bf16[a.cell](pointers<Bf16>(a, r, save), cpu::parallel());
  } else {
    cpu::kernels().forward_double[a.cell](pointers<double>(a, r, save), cpu::parallel());
  }
  return r;
}

std::tuple<Tensor, Tensor, Tensor> layer_inference(Tensor input, OptionalTensor batch_sizes,
                                                   Tensor h0, OptionalTensor c0,
                                                   std::vector<Tensor> weights, std::string cell,
                                                   bool bias, OptionalTensor reset,
                                                   OptionalTensor lengths, int64_t, double) {
  const Results r =
      forward(Arguments(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths),
              /*save=*/false);
  return {r.output, r.h_n, r.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    Tensor input, OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, std::string cell, bool bias, OptionalTensor reset,
    OptionalTensor lengths, int64_t, double) {
  const Results r =
      forward(Arguments(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths),
              /*save=*/true);
  return {r.output, r.h_n, r.c_n, r.gates, r.cells, r.hidden};
}

// A tensor that forward made or a gradient of one, as the kernels want it.
OptionalTensor checked(const Arguments& a, const char* what, const OptionalTensor& t,
                       int64_t numel) {
  if (!t) return std::nullopt;
  FASTRNN_CHECK(
      t->numel() == numel && t->scalar_type() == a.dtype() && t->device() == a.input.device(), what,
      " does not fit the other arguments");
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
void backward(const Arguments& a, const Results& saved, const Cotangents& in, const Gradients& out,
              BackwardKernel<T>* kernel) {
  Backward<T> b{};
  b.forward = pointers<T>(a, saved, /*save=*/true);
  b.dy = data<T>(in.output);
  b.dh_n = data<T>(in.h_n);
  b.dc_n = data<T>(in.c_n);
  b.dcells = data<T>(in.cells);
  b.detach_every = in.detach_every;
  b.grad_clip = in.grad_clip;
  b.dx = data<T>(OptionalTensor(out.input));
  b.dh0 = data<T>(OptionalTensor(out.h0));
  b.dc0 = data<T>(OptionalTensor(out.c0));
  b.need_weights = !out.weights.empty();
  for (int64_t d = 0; d < a.size.directions && b.need_weights; ++d) {
    const Tensor* w = &out.weights[d * a.per_direction];
    b.dweights[d] = {data<T>(w[0]), data<T>(w[1]), a.bias ? data<T>(w[2]) : nullptr,
                     a.bias ? data<T>(w[3]) : nullptr,
                     a.size.projected ? data<T>(w[a.per_direction - 1]) : nullptr};
  }
  kernel(b, cpu::parallel());
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
    OptionalTensor grad_cells, Tensor input, OptionalTensor batch_sizes, Tensor h0,
    OptionalTensor c0, std::vector<Tensor> weights, Tensor output, Tensor gates, Tensor cells,
    Tensor hidden, std::string cell, bool bias, bool need_input, bool need_state, bool need_weights,
    OptionalTensor reset, OptionalTensor lengths, int64_t detach_every, double grad_clip) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, bias, reset, lengths);
  check_dtype(a);
  const Sizes& s = a.size;
  const bool c = a.info.has_c;
  const int64_t h_numel = s.directions * s.batch * s.state;
  const int64_t c_numel = s.directions * s.batch * s.hidden;
  const int64_t rows_numel = s.directions * s.rows * s.hidden;
  const Results saved{*checked(a, "output", output, s.rows * s.directions * s.state),
                      a.empty({0}),
                      a.empty({0}),
                      *checked(a, "gates", gates, rows_numel * a.info.saved),
                      *checked(a, "cells", cells, c ? rows_numel : 0),
                      *checked(a, "hidden", hidden, s.projected ? rows_numel : 0)};
  FASTRNN_CHECK(detach_every >= 0 && grad_clip >= 0, "detach_every and grad_clip must not be ",
                "negative, got ", detach_every, " and ", grad_clip);
  const Cotangents in{checked(a, "grad_output", grad_output, saved.output.numel()),
                      checked(a, "grad_h_n", grad_h_n, h_numel),
                      c ? checked(a, "grad_c_n", grad_c_n, c_numel) : std::nullopt,
                      c ? checked(a, "grad_cells", grad_cells, rows_numel) : std::nullopt,
                      detach_every,
                      grad_clip};

  const auto like = [&](const Tensor& t) { return a.empty({t.sizes().begin(), t.sizes().end()}); };
  Gradients out{need_input ? like(a.input) : a.empty({0}),
                need_state ? like(a.h0) : a.empty({0}),
                need_state && c ? like(*a.c0) : a.empty({0}),
                {}};
  if (need_weights)
    for (const Tensor& w : a.weights) out.weights.push_back(like(w));
  if (a.dtype() == ScalarType::Float) {
    backward<float>(a, saved, in, out, cpu::kernels().backward_float[a.cell]);
  } else if (a.dtype() == ScalarType::BFloat16) {
    backward<Bf16>(a, saved, in, out, cpu::kernels().backward_bf16[a.cell]);
  } else {
    backward<double>(a, saved, in, out, cpu::kernels().backward_double[a.cell]);
  }
  return {out.input, out.h0, out.c0, out.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_inference", TORCH_BOX(&layer_inference));
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

}  // namespace fastrnn
