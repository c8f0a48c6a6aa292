// What a layer writes, and what passes backward, as views that are checked against the call. The
// twin of fastrnn/results.py; no torch. Absent is a view without data.
#pragma once

#include "call.h"

namespace fastrnn {

struct Results {
  View output, h_n, c_n;
  View gates, cells, hidden;  // for backward
};
struct Cotangents {
  View output, h_n, c_n, cells, hidden;  // absent is zero
  int64_t detach_every;
  double grad_clip;
};
struct Gradients {
  View input, h0, c0;             // absent is not wanted
  const View* weights = nullptr;  // as many as the call has, or null
  bool of_rows = false;           // weights have a dimension more, the batch: one of each row
};

template <class T>
T* data(const View& v) {
  return v.numel() > 0 ? static_cast<T*>(v.data) : nullptr;
}

// Whether h of every step is saved beside the output: before a projection, or as another state.
inline bool keeps_hidden(const Call& call) {
  return call.size.projected || (call.info.program && call.info.program->output > 0);
}

// How many numbers the tensors of a call have; gates, cells and hidden are 0 where the cell does
// not save them.
struct Counts {
  int64_t output, h, c, gates, cells, hidden;

  explicit Counts(const Call& call) {
    const Sizes& s = call.size;
    const int64_t rows = s.directions * s.rows, per_row = rows * s.hidden;
    output = s.rows * s.directions * s.state;
    h = s.directions * s.batch * s.state;
    c = s.directions * s.batch * s.cell;
    gates = per_row * call.info.saved;
    cells = rows * s.cell;
    hidden = keeps_hidden(call) ? per_row : 0;
  }
};

// std::runtime_error unless a view has `numel` numbers like those of the call. Shapes are not
// compared.
inline void check_numbers(const Call& call, const char* what, const View& v, int64_t numel) {
  if (v.absent() && numel == 0) return;
  FASTRNN_CHECK(v.numel() == numel && v.type == call.given.input.type && v.dense &&
                    v.same_device(call.given.input),
                what, " does not fit the other arguments");
}

// The same of what forward left for backward.
inline void check_saved(const Call& call, const Results& saved) {
  const Counts count(call);
  check_numbers(call, "gates", saved.gates, count.gates);
  check_numbers(call, "cells", saved.cells, count.cells);
  check_numbers(call, "hidden", saved.hidden, count.hidden);
}

// The same of all that a backward call reads.
inline void check_backward(const Call& call, const Results& saved, const Cotangents& in) {
  const Counts count(call);
  check_numbers(call, "output", saved.output, count.output);
  check_saved(call, saved);
  const auto check = [&](const char* what, const View& v, int64_t numel) {
    if (!v.absent()) check_numbers(call, what, v, numel);
  };
  check("grad_output", in.output, count.output);
  check("grad_h_n", in.h_n, count.h);
  check("grad_c_n", in.c_n, count.c);
  check("grad_cells", in.cells, count.cells);
  const bool other = call.info.program && call.info.program->output > 0;
  check("grad_hidden", in.hidden, other ? count.hidden : 0);
  FASTRNN_CHECK(in.detach_every >= 0 && in.grad_clip >= 0,
                "detach_every and grad_clip must not be negative, got ", in.detach_every, " and ",
                in.grad_clip);
}

template <class T>
Forward<T> forward_of(const Call& call, const Results& r, bool save) {
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

template <class T>
Backward<T> backward_of(const Call& call, const Results& saved, const Cotangents& in,
                        const Gradients& out) {
  Backward<T> b{};
  b.forward = forward_of<T>(call, saved, /*save=*/true);
  b.dy = data<T>(in.output);
  b.dh_n = data<T>(in.h_n);
  b.dc_n = data<T>(in.c_n);
  b.dcells = data<T>(in.cells);
  b.dhidden = data<T>(in.hidden);
  b.detach_every = in.detach_every;
  b.grad_clip = in.grad_clip;
  b.dx = data<T>(out.input);
  b.dh0 = data<T>(out.h0);
  b.dc0 = data<T>(out.c0);
  b.need_weights = out.weights != nullptr;
  b.of_rows = out.of_rows;
  for (int64_t d = 0; d < call.size.directions && b.need_weights; ++d)
    b.dweights[d] = call.names.of<T>(out.weights + d * call.names.count);
  return b;
}

// function.operator()<T>() for the type of the call's numbers.
template <class F>
auto for_type(const Call& call, F&& function) {
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

}  // namespace fastrnn
