// The three ops on CPU tensors. Their schemas stand in fastrnn/ops.py.
#include "bind.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "results.h"

namespace fastrnn {

namespace {

// The results of a forward call. What does not apply is (0,).
struct Outputs {
  Tensor output, h_n, c_n, gates, cells, hidden;
};

Outputs forward(const Arguments& a, bool save) {
  const Call& call = a.call;
  const Sizes& s = call.size;
  const bool c = s.cell > 0;
  const Outputs out{
      a.empty(a.output_shape()),
      a.empty({s.directions, s.batch, s.state}),
      c ? a.empty({s.directions, s.batch, s.cell}) : a.empty({0}),
      save ? a.empty({s.directions, s.rows, call.info.saved, s.hidden}) : a.empty({0}),
      save && c ? a.empty({s.directions, s.rows, s.cell}) : a.empty({0}),
      save && keeps_hidden(call) ? a.empty({s.directions, s.rows, s.hidden}) : a.empty({0})};
  const Results results{view(out.output), view(out.h_n),   view(out.c_n),
                        view(out.gates),  view(out.cells), view(out.hidden)};
  for_type(call, [&]<class T>() {
    cpu::run_forward<T>(cpu::kernels(), call.cell, forward_of<T>(call, results, save),
                        cpu::parallel());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> layer_inference(Tensor input, OptionalTensor batch_sizes,
                                                   Tensor h0, OptionalTensor c0,
                                                   std::vector<Tensor> weights, Text cell,
                                                   Text names, OptionalTensor reset,
                                                   OptionalTensor lengths, int64_t, double,
                                                   int64_t parts) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths, false, parts);
  const Outputs out = forward(a, /*save=*/false);
  return {out.output, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(
    Tensor input, OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0,
    std::vector<Tensor> weights, Text cell, Text names, OptionalTensor reset,
    OptionalTensor lengths, int64_t, double, int64_t parts) {
  const Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths, false, parts);
  const Outputs out = forward(a, /*save=*/true);
  return {out.output, out.h_n, out.c_n, out.gates, out.cells, out.hidden};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
    OptionalTensor grad_cells, OptionalTensor grad_hidden, Tensor output, Tensor gates,
    Tensor cells, Tensor hidden, bool need_input, bool need_state, bool need_weights, Tensor input,
    OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
    Text cell, Text names, OptionalTensor reset, OptionalTensor lengths, int64_t detach_every,
    double grad_clip, int64_t parts) {
  Arguments a(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths, false, parts);
  const Call& call = a.call;
  const bool c = call.size.cell > 0;
  const auto given = [&](const OptionalTensor& t) { return t ? view(a.keep(*t)) : View{}; };
  const Results saved{given(output), {}, {}, given(gates), given(cells), given(hidden)};
  const Cotangents in{given(grad_output),
                      given(grad_h_n),
                      c ? given(grad_c_n) : View{},
                      c ? given(grad_cells) : View{},
                      given(grad_hidden),
                      detach_every,
                      grad_clip};
  check_backward(call, saved, in);

  const auto room = [&](bool needed, const View& like) {
    return a.empty(needed ? std::vector<int64_t>{like.size, like.size + like.dims}
                          : std::vector<int64_t>{0});
  };
  const View& c_like = c ? *call.given.c0 : call.given.h0;
  const Tensor d_input = room(need_input, call.given.input), d_h0 = room(need_state, call.given.h0),
               d_c0 = room(need_state && c, c_like);
  std::vector<Tensor> d_weights;
  std::vector<View> views;
  for (int64_t i = 0; i < call.given.weight_count && need_weights; ++i) {
    d_weights.push_back(room(true, call.given.weights[i]));
    views.push_back(view(d_weights.back()));
  }
  const Gradients out{view(d_input), view(d_h0), view(d_c0),
                      views.empty() ? nullptr : views.data()};
  for_type(call, [&]<class T>() {
    cpu::run_backward<T>(cpu::kernels(), call.cell, backward_of<T>(call, saved, in, out),
                         cpu::parallel());
  });
  return {d_input, d_h0, d_c0, d_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_inference", TORCH_BOX(&layer_inference));
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

}  // namespace fastrnn
