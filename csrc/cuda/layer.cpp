// The layers of the backend "cuda" as ops: forward and backward are one call each, and checks,
// memory, products and launches are here. The schemas stand in fastrnn/dispatch/cuda/launch.py.
#include "cuda/layer.h"

#include <cstring>

namespace fastrnn::cuda {
namespace {

void* address(const OptionalTensor& t) { return t && t->numel() > 0 ? t->data_ptr() : nullptr; }

template <class Steps>
Steps nothing() {
  Steps steps;
  std::memset(&steps, 0, sizeof steps);  // its bytes are a key
  return steps;
}

How how_of(const std::string& dtype, const std::string& schedule, int64_t stream, bool repeats) {
  for (int k = 0; k < kDtypes; ++k)
    if (dtype == kDtypeNames[k])
      return {static_cast<Dtype>(k), schedule, static_cast<uintptr_t>(stream), repeats};
  fail("no CUDA kernels for dtype ", dtype);
}

// The input part of the pre-activations and the loop over time, with the memory between its steps;
// `s` has the addresses of the results.
void run_forward(const Layer& l, const How& how, Forward& s) {
  const int64_t D = l.size.directions, N = l.size.batch, H = l.size.hidden, P = l.size.state;
  const int64_t G = l.gates, rows = l.size.rows, pitch = l.pitch(P);
  const WeightNames& at = l.call.names;
  const bool projected = l.size.projected;
  std::vector<ProductSize> products{{G, H, P}};
  if (projected) products.push_back({1, P, H});
  Loop loop{l.call.cell, how.dtype, false};
  const Plan plan = choose_plan(how, loop, products, N, D, false);
  loop.library = plan.library;
  const bool grouped = plan.groups.blocks > 0;
  const int64_t ring =
      ring_size(plan.groups, static_cast<int>(G), H, D, false, static_cast<int>(l.item));
  const auto memory = pieces(l.input, {{rows, D * G * H},
                                       {grouped ? 1 : 2, D * N, pitch},
                                       {projected ? D * N : 0, l.pitch(H)},
                                       {grouped ? ring : 0}});
  const Tensor &x = memory[0], &h = memory[1], &m = memory[2];
  linear(x, l.rows_of_input(), *l.joined(at.w_ih), l.joined(at.b_ih));
  if (pitch != P) l.zero(h);
  for (int64_t k = 0; k < h.size(0); ++k) l.put(h, pitch, l.h0, D * N, P, k * D * N);
  if (projected) l.zero(m);
  if (grouped) l.zero(memory[3]);
  Tensor w_hh = *l.joined(at.w_hh);
  const OptionalTensor b_hh = l.joined(at.b_hh);
  OptionalTensor w_hr = l.joined(at.w_hr), sums;
  if (plan.library) {
    sums = l.empty_wide({std::max(D * N * G * H, D * N * P)});
  } else {
    w_hh = l.padded(w_hh, D * G * H, P);
    if (projected) w_hr = l.padded(*w_hr, D * P, H);
  }
  s.size = l.steps();
  s.projected = projected;
  s.x = address(x);
  s.w_hh = address(w_hh);
  s.b_hh = address(b_hh);
  s.w_hr = address(w_hr);
  s.h = address(h);
  s.m = address(m);
  s.ring = address(memory[3]);
  s.sums = address(sums);
  const Runner<Forward> run(how, loop, plan.groups, s);
  if (!plan.library) return run();
  std::vector<Products> made;
  for (int64_t k = 0; k < 2; ++k)
    made.emplace_back(part(h, {D, N, P}, {N * pitch, pitch, 1}, k * D * N * pitch),
                      part(w_hh, {D, P, G * H}, {P * G * H, 1, P}),
                      part(*sums, {D, N, G * H}, {N * G * H, G * H, 1}));
  if (projected)
    made.emplace_back(part(m, {D, N, H}, {N * l.pitch(H), l.pitch(H), 1}),
                      part(*w_hr, {D, H, P}, {P * H, 1, H}), part(*sums, {D, N, P}, {N * P, P, 1}));
  run.with_products([&](int64_t i, Part part) { made[part == Part::kCell ? i % 2 : 2](); });
}

using Forwarded = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forwarded forward(OptionalTensor row_lengths, OptionalTensor offsets, bool save, Text dtype,
                  Text schedule, int64_t stream, bool repeats, Tensor input,
                  OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0,
                  std::vector<Tensor> weights, Text cell, Text names, OptionalTensor reset,
                  OptionalTensor lengths, int64_t, double, int64_t) {
  const How how = how_of(dtype, schedule, stream, repeats);
  const Layer l(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths,
                {row_lengths, offsets, {}, {}}, how.stream);
  const CellInfo& info = l.call.info;
  const int64_t D = l.size.directions, N = l.size.batch, H = l.size.hidden, rows = l.size.rows;
  const Shape none{0};
  const Tensor y = l.written(l.empty(l.output_shape())), h_n = l.empty({D, N, l.size.state}),
               c_n = l.empty(c0 ? Shape{D, N, H} : none),
               gates = l.written(l.empty(save ? Shape{D, rows, info.saved, H} : none)),
               cells = l.written(l.empty(save && c0 ? Shape{D, rows, H} : none)),
               hidden = l.written(l.empty(save && l.size.projected ? Shape{D, rows, H} : none));
  if (l.past_end) l.copy_state(h_n, l.h0);  // where every row has a step, each element is written
  OptionalTensor kept;
  if (info.keeps) {
    const bool c = info.keeps == 'c';
    kept = c && l.wide == c_n.scalar_type() ? c_n : l.empty_wide({D, N, H});
    l.copy_state(*kept, c ? *l.c0 : l.h0);
  }
  Forward s = nothing<Forward>();
  s.kept = address(kept);
  s.y = address(y);
  s.h_n = address(h_n);
  s.gates = address(gates);
  s.cells = address(cells);
  s.hidden = address(hidden);
  run_forward(l, how, s);
  if (c0 && kept->get() != c_n.get()) copy(c_n, *kept);
  return {y, h_n, c_n, gates, cells, hidden};
}

// Gradients that the loop of a backward call gives.
struct Looped {
  Tensor dx;       // [rows, D, G, H] of the input part
  Tensor du;       // of the hidden part
  Tensor d_state;  // [rows, D, P] of each h of a projected layer
};

// The loop over time, of which `s` has the addresses of what came in.
Looped run_backward(const Layer& l, const How& how, Backward& s) {
  const int64_t D = l.size.directions, N = l.size.batch, H = l.size.hidden, P = l.size.state;
  const int64_t G = l.gates, K = G * H, rows = l.size.rows, pitch = l.pitch(K);
  const bool projected = l.size.projected, split = l.call.info.split;
  std::vector<ProductSize> products{{1, P, K}};
  if (projected) products.push_back({1, H, P});
  Loop loop{l.call.cell, how.dtype, false};
  const Plan plan = choose_plan(how, loop, products, N, D, true);
  loop.library = plan.library;
  const bool grouped = plan.groups.blocks > 0, stepwise = !plan.library && !grouped;
  const int64_t ring =
      ring_size(plan.groups, static_cast<int>(G), H, D, true, static_cast<int>(l.item));
  const Shape weights = grouped    ? l.pitched(D * P * G, H)
                        : stepwise ? l.pitched(D * P, K)
                                   : Shape{0};
  const auto memory = pieces(l.input, {{rows, D * K},
                                       {split ? rows : 0, D * K},
                                       {projected ? rows : 0, D * P},
                                       {grouped ? 0 : 2 * D * N, pitch},
                                       {projected ? D * N : 0, l.pitch(P)},
                                       weights,
                                       stepwise && projected ? l.pitched(D * H, P) : Shape{0},
                                       {grouped ? ring : 0}});
  const Tensor &du = l.written(memory[0]), &sent = memory[3], &sent_state = memory[4];
  const Tensor dx = split ? l.written(memory[1]) : du, d_state = l.written(memory[2]);
  l.zero(sent);
  l.zero(sent_state);
  l.zero(memory[7]);
  Tensor w_hh = *l.joined(l.call.names.w_hh);
  OptionalTensor w_hr = l.joined(l.call.names.w_hr), sums;
  if (grouped) {
    const int64_t row = l.pitch(H);
    if (row != H) l.zero(memory[5]);
    copy(part(memory[5], {D, P, G, H}, {P * G * row, G * row, row, 1}),
         part(w_hh, {D, P, G, H}, {K * P, 1, H * P, P}));
    w_hh = memory[5];
  } else if (stepwise) {
    l.transpose(memory[5], w_hh, K, P);
    w_hh = memory[5];
    if (projected) {
      l.transpose(memory[6], *w_hr, P, H);
      w_hr = memory[6];
    }
  } else {
    sums = l.empty_wide({std::max(D * N * P, D * N * H)});
  }
  s.size = l.steps();
  s.projected = projected;
  s.w_hh = address(w_hh);
  s.w_hr = address(w_hr);
  s.dx = split ? address(dx) : nullptr;
  s.du = address(du);
  s.d_state = address(d_state);
  s.sent = address(sent);
  s.sent_state = address(sent_state);
  s.sums = address(sums);
  s.ring = address(memory[7]);
  const Runner<Backward> run(how, loop, plan.groups, s);
  if (!plan.library) {
    run();
    return {dx, du, d_state};
  }
  std::vector<Products> made;
  for (int64_t k = 0; k < 2; ++k)
    made.emplace_back(part(sent, {D, N, K}, {N * pitch, pitch, 1}, k * D * N * pitch),
                      part(w_hh, {D, K, P}, {K * P, P, 1}), part(*sums, {D, N, P}, {N * P, P, 1}));
  if (projected)
    made.emplace_back(part(sent_state, {D, N, P}, {N * l.pitch(P), l.pitch(P), 1}),
                      part(*w_hr, {D, P, H}, {P * H, H, 1}), part(*sums, {D, N, H}, {N * H, H, 1}));
  const Part first = projected ? Part::kState : Part::kCell;
  run.with_products([&](int64_t i, Part part) {
    if (part != first) return made[2]();
    if (i + 1 < l.size.steps) made[1 - i % 2]();  // nothing comes from after the last step
  });
  return {dx, du, d_state};
}

// The state from which each row of direction d was computed, [rows, P], where rows do not all take
// part in every step from its own state on.
Tensor states_before(const Layer& l, const Tensor& y, int64_t d) {
  const int64_t N = l.size.batch, P = l.size.state, D = l.size.directions, rows = l.size.rows;
  const int64_t others = rows - N, first = d == 0 ? 0 : others;
  const Tensor h = l.empty({rows, P}), h0 = part(l.h0, {N, P}, {P, 1}, d * N * P);
  const auto of_y = [&](int64_t row) {
    return part(y, {others, P}, {D * P, 1}, row * D * P + d * P);
  };
  if (d == 0 && l.ragged.earlier) {
    select_rows(part(h, {others, P}, {P, 1}, N * P), part(y, {rows, P}, {D * P, 1}),
                *l.ragged.earlier);
  } else if (d == 0) {
    copy(part(h, {others, P}, {P, 1}, N * P), of_y(0));
  } else if (l.ragged.earlier) {
    copy_to_rows(h, *l.ragged.earlier, of_y(N));
  } else {
    copy(part(h, {others, P}, {P, 1}), of_y(N));
  }
  if (d == 1 && l.past_end) l.zero(part(h, {N, P}, {P, 1}, others * P));
  if (d == 1 && l.ragged.last) {
    copy_to_rows(h, *l.ragged.last, h0);
  } else {
    copy(part(h, {N, P}, {P, 1}, first * P), h0);
  }
  if (l.reset) zero_where(h, matrix(*l.reset, rows, 1));
  return h;
}

// Gradient of h0 by way of w_hh: what the first step of each row sends back.
Tensor state_gradient(const Layer& l, const Tensor& du, const OptionalTensor& d_kept) {
  const int64_t N = l.size.batch, P = l.size.state, D = l.size.directions, rows = l.size.rows;
  const int64_t K = l.gates * l.size.hidden;
  const Tensor grad = l.empty({D, N, P});
  for (int64_t d = 0; d < D; ++d) {
    Tensor sent = part(du, {N, K}, {D * K, 1}, d == 0 ? 0 : (rows - N) * D * K + K);
    if (d == 1 && l.ragged.last) {
      sent = l.empty({N, K});
      select_rows(sent, part(du, {rows, K}, {D * K, 1}, K), *l.ragged.last);
    }
    multiply(part(grad, {N, P}, {P, 1}, d * N * P), sent, l.weight(d, l.call.names.w_hh));
  }
  if (l.call.info.keeps == 'h')
    copy(grad, told([&] { return torch::stable::subtract(grad, *d_kept, -1); }));
  return grad;
}

// Gradient of w_hh of direction d into `grad`. Where every row takes every step, those of the first
// one come from h0, and all others from the output of the step before.
void hidden_gradient(const Layer& l, const Matrix& du, const Tensor& y, int64_t d,
                     const Tensor& grad) {
  const int64_t D = l.size.directions, N = l.size.batch, P = l.size.state, rows = l.size.rows;
  if (l.ragged.lengths || l.reset) return multiply(grad, du.transposed(), states_before(l, y, d));
  const int64_t others = rows - N;
  const Tensor h0 = part(l.h0, {N, P}, {P, 1}, d * N * P);
  multiply(grad, du.some(d == 0 ? 0 : others, N).transposed(), h0);
  if (others == 0) return;
  const Matrix before{y, others, P, D * P, d * P + (d == 0 ? 0 : N * D * P)};
  linear(grad, du.some(d == 0 ? N : 0, others).transposed(), before.transposed(), grad);
}

// Gradients of the weights of direction d, in the order of their names.
void weight_gradients(const Layer& l, const Looped& g, const Tensor& y,
                      const OptionalTensor& hidden, int64_t d, const Tensor* grads) {
  const int64_t D = l.size.directions, H = l.size.hidden, P = l.size.state, rows = l.size.rows;
  const int64_t K = l.gates * H;
  const WeightNames& at = l.call.names;
  const Matrix dx{g.dx, rows, K, D * K, d * K}, du{g.du, rows, K, D * K, d * K};
  multiply(grads[at.w_ih], dx.transposed(), l.rows_of_input());
  hidden_gradient(l, du, y, d, grads[at.w_hh]);
  if (at.b_ih >= 0) {
    sum_rows(grads[at.b_hh], du.plain());
    if (l.call.info.split)
      sum_rows(grads[at.b_ih], dx.plain());
    else
      l.copy_state(grads[at.b_ih], grads[at.b_hh]);
  }
  if (at.w_hr >= 0)
    multiply(grads[at.w_hr], Matrix{g.d_state, rows, P, D * P, d * P}.transposed(),
             part(*hidden, {rows, H}, {H, 1}, d * rows * H));
}

std::vector<Tensor> weight_gradients(const Layer& l, const Looped& g, const Tensor& y,
                                     const OptionalTensor& hidden) {
  std::vector<Shape> shapes;
  for (const Tensor& w : l.weights) shapes.emplace_back(w.sizes().begin(), w.sizes().end());
  std::vector<Tensor> grads = pieces(l.input, shapes);
  for (int64_t d = 0; d < l.size.directions; ++d)
    weight_gradients(l, g, y, hidden, d, &grads[static_cast<size_t>(d * l.call.names.count)]);
  return grads;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
    OptionalTensor grad_cells, Tensor output, OptionalTensor gates, OptionalTensor cells,
    OptionalTensor hidden, bool need_input, bool need_state, bool need_weights,
    OptionalTensor row_lengths, OptionalTensor offsets, OptionalTensor earlier, OptionalTensor last,
    Text dtype, Text schedule, int64_t stream, bool repeats, Tensor input,
    OptionalTensor batch_sizes, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
    Text cell, Text names, OptionalTensor reset, OptionalTensor lengths, int64_t detach_every,
    double grad_clip, int64_t) {
  const How how = how_of(dtype, schedule, stream, repeats);
  const Layer l(input, batch_sizes, h0, c0, weights, cell, names, reset, lengths,
                {row_lengths, offsets, earlier, last}, how.stream);
  const int64_t D = l.size.directions, N = l.size.batch, H = l.size.hidden, rows = l.size.rows;
  const OptionalTensor dy = aligned(grad_output), dh_n = aligned(grad_h_n),
                       dc_n = c0 ? aligned(grad_c_n) : std::nullopt,
                       d_cells = c0 ? aligned(grad_cells) : std::nullopt,
                       kept_gates = aligned(gates), kept_cells = aligned(cells),
                       kept_hidden = aligned(hidden);
  const Tensor y = aligned(output);
  const auto viewed = [](const OptionalTensor& t) { return t ? view(*t) : View{}; };
  check_backward(
      l.call, {view(y), {}, {}, viewed(kept_gates), viewed(kept_cells), viewed(kept_hidden)},
      {viewed(dy), viewed(dh_n), viewed(dc_n), viewed(d_cells), {}, detach_every, grad_clip});

  const Shape none{0}, state{D, N, l.size.state};
  const CellInfo& info = l.call.info;
  const Tensor d_c0 = l.empty(need_state && c0 ? Shape{D, N, H} : none);
  OptionalTensor d_kept;
  if (info.keeps) {
    const bool in_place = need_state && c0 && l.wide == d_c0.scalar_type();
    d_kept = in_place ? d_c0 : l.empty_wide({D, N, H});
    if (dc_n)
      l.copy_state(*d_kept, *dc_n);
    else
      l.zero(*d_kept);
  }
  Backward s = nothing<Backward>();
  s.detach_every = detach_every >= l.size.steps ? 0 : detach_every;  // no step is that late
  s.grad_clip = grad_clip;
  s.dy = address(dy);
  s.dh_n = address(dh_n);
  s.d_cells = address(d_cells);
  s.d_kept = address(d_kept);
  s.h0 = address(l.h0);
  s.c0 = address(l.c0);
  s.y = address(y);
  s.gates = address(kept_gates);
  s.cells = c0 ? address(kept_cells) : nullptr;
  const Looped found = run_backward(l, how, s);

  const Tensor d_input =
      l.empty(need_input ? Shape{l.input.sizes().begin(), l.input.sizes().end()} : none);
  if (need_input)
    multiply(matrix(d_input, rows, l.size.input), found.dx, *l.joined(l.call.names.w_ih));
  if (need_state && c0 && d_kept->get() != d_c0.get()) copy(d_c0, *d_kept);
  const Tensor d_h0 = need_state ? state_gradient(l, found.du, d_kept) : l.empty(none);
  return {d_input, d_h0, d_c0,
          need_weights ? weight_gradients(l, found, y, kept_hidden) : std::vector<Tensor>{}};
}

}  // namespace

#if defined(FASTRNN_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
#endif
  m.impl("cuda_forward", TORCH_BOX(&forward));
  m.impl("cuda_backward", TORCH_BOX(&backward));
}

}  // namespace fastrnn::cuda
