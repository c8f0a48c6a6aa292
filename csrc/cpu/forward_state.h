// What a layer carries from step to step forward: its packed weights, the input parts of a chunk of
// steps, and the states.
#pragma once

#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

// Base is the Schedule of a layer, whose panels of gates have NV registers and hold Groups gates of
// the same units, or, where Groups is 0, the registers of all gates in turn.
template <class Base, class Stored, int NV, int Groups>
struct ForwardState : Base {
  using Base::active, Base::D, Base::entry, Base::f, Base::H, Base::I, Base::kind, Base::ld_cell,
      Base::ld_state, Base::N, Base::P, Base::row, Base::s, Base::split;
  using typename Base::O;
  using typename Base::T;
  using Gated = Panels<Stored, O, NV, Groups, true>;
  using Bias = Panels<Stored, T, NV, Groups, true>;
  using Projection = Panels<Stored, O, kWide, 1, true>;
  static constexpr bool kRounds = !std::is_same_v<O, T>;  // h has a copy that is an operand
  static constexpr bool kMixed = Groups == 0;
  static constexpr int64_t kLd = kWidth<T, NV>;

  struct Direction {
    Gated ih, hh, hw;  // hw: the rows of w_hh of a second product
    Projection hr;
    Buffer<T> b_ih, b_hh, b_hw;  // [panels, kLd] interleaved like the panels
    Buffer<T> x_part;            // W_ih x + b of the rows of a chunk: `x_part` says where each is
    Buffer<T> h;                 // [2, N, ld_state] h of the last step and of this one
    Buffer<O> h_operand;         // the same where kRounds, zero beyond P
    Buffer<T> c;                 // [planes of c, N, ld_cell]
    Buffer<O> m;                 // [N, ld_cell] h before the projection; zero beyond H
    Buffer<T> partial;           // [slices, N, kLd] sums of a panel that is cut in depth
  };

  // One step of one batch block.
  struct Step {
    int64_t d, row, chunk_row, rows;  // first row in the order of time and of x_part, their number
    T *h_prev, *h, *c;                // h_prev and h [rows, ld_state], c and m [rows, ld_cell]
    O *left, *next_left;              // h_prev and h as operands, where these are others
    O* m;
    T* partial;  // [rows, kLd]
  };

  const int64_t chunk_;  // time steps
  Direction direction_[2];
  Buffer<T> zero_;

  template <class... Arguments>
  explicit ForwardState(const Arguments&... arguments)
      : Base(arguments...),
        chunk_(this->chunk(ceil_div(N, split.rows), kRowBlock<O>,
                           kChunkBytes / (kind.gates_x * H * int64_t{sizeof(T)}))),
        direction_{make(0), make(1)},
        zero_(kWidth<T, kWide>) {}

  // Packs weights and biases.
  void pack() {
    memset(zero_, 0, kWidth<T, kWide> * sizeof(T));
    Base::pack(direction_, &Direction::ih, &Direction::hh, &Direction::hw, &Direction::hr);
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      const Bias b_ih(f.weights[d].b_ih, 1, H, false, w.ih.groups);
      const Bias b_hh(f.weights[d].b_hh, 1, H, false, w.hh.groups);
      for (int64_t p = 0; p < w.ih.count(); ++p) b_ih.pack(p, w.b_ih + p * kLd);
      for (int64_t p = 0; p < w.hh.count(); ++p) b_hh.pack(p, w.b_hh + p * kLd);
      const Bias b_hw(after_first(f.weights[d].b_hh, 1), 1, H, false, w.hw.groups);
      for (int64_t p = 0; p < w.hw.count(); ++p) b_hw.pack(p, w.b_hw + p * kLd);
      // Where the cell only sees x + u, the recurrent product starts from x_part, both biases in.
      run(this->parallel, 1, [&](int64_t) {
        for (int64_t i = 0; i < w.ih.count() * kLd && !kind.split; ++i) w.b_ih[i] += w.b_hh[i];
      });
    }
  }

  void load_states() {
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      for (int64_t n = 0; n < N; ++n) {
        const int64_t from = d * N + entry(n);
        // Both halves: a row of the reverse direction may enter at an odd step.
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t to = (half * N + n) * ld_state;
          copy(w.h + to, f.h0 + from * P, P);
          if constexpr (kRounds) {
            memset(w.h_operand + to, 0, ld_state * sizeof(O));
            copy(w.h_operand + to, f.h0 + from * P, P);
          }
        }
        for (int64_t k = 0; k < kind.own; ++k)
          copy(w.c + (k * N + n) * ld_cell, f.c0 + (from * kind.own + k) * H, H);
        if constexpr (kRounds)
          if (s.projected) memset(w.m + n * ld_cell, 0, ld_cell * sizeof(O));
      }
    }
  }
  // The final state of a step's n'th row.
  void store_final(int64_t d, int64_t n, const T* h) {
    const int64_t to = d * N + entry(n);
    copy(f.h_n + to * P, h, P);
    for (int64_t k = 0; k < kind.own; ++k)
      copy(f.c_n + (to * kind.own + k) * H, direction_[d].c + (k * N + n) * ld_cell, H);
  }

  // Numbers from a row of the input parts to the next.
  int64_t ld_x() const {
    if constexpr (kMixed)
      return direction_[0].ih.count() * kLd;
    else
      return kLd;
  }
  // Where those of a panel begin. Rows of a batch block begin at that of chunk_ times as many as
  // are before it.
  T* x_part(int64_t d, int64_t panel, int64_t chunk_row) const {
    return direction_[d].x_part +
           (kMixed ? chunk_row * ld_x() + panel * kLd : (panel * chunk_ * N + chunk_row) * kLd);
  }

  int64_t at_state(int64_t step, int64_t n) const { return ((~step & 1) * N + n) * ld_state; }
  T* h_after(int64_t d, int64_t step, int64_t n) const {
    return direction_[d].h + at_state(step, n);
  }
  O* operand_after(int64_t d, int64_t step, int64_t n) const {
    if constexpr (kRounds)
      return direction_[d].h_operand + at_state(step, n);
    else
      return h_after(d, step, n);
  }
  Step at(int64_t d, int64_t step, Range batch, int64_t before, int64_t partial_row) const {
    const Direction& w = direction_[d];
    return {d,
            row(d, step) + batch.first,
            chunk_ * batch.first + before,
            active(d, step, batch),
            h_after(d, step - 1, batch.first),
            h_after(d, step, batch.first),
            kind.own > 0 ? w.c + batch.first * ld_cell : nullptr,
            operand_after(d, step - 1, batch.first),
            operand_after(d, step, batch.first),
            s.projected ? w.m + batch.first * ld_cell : nullptr,
            w.partial ? w.partial + partial_row * kLd : nullptr};
  }

 private:
  // The rows of a second product in a matrix that has rows for each hidden gate, or null.
  const Stored* after_first(const Stored* matrix, int64_t columns) const {
    return matrix && kind.gates_w > 0 ? matrix + kind.gates_u * H * columns : nullptr;
  }

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<const Stored>& w = f.weights[used ? d : 0];
    const auto groups = [&](int64_t gates) { return kMixed && used ? gates : Groups; };
    const auto panels = [&](int64_t gates) {
      return !used    ? 0
             : kMixed ? ceil_div(gates * ceil_div(H, kLanes<T>), NV)
                      : ceil_div(H, Gated::kUnits);
    };
    const int64_t cut = !kMixed && panel_depth<O, NV>(P, N) < P ? split.units * split.slices : 0;
    return {Gated(w.w_ih, I, H, used, groups(kind.gates_x)),
            Gated(w.w_hh, P / s.heads, H, used, groups(kind.gates_u)),
            Gated(after_first(w.w_hh, P), P, H, used, kMixed ? groups(kind.gates_w) : Groups),
            Projection(w.w_hr, H, P, used),
            Buffer<T>(panels(kind.gates_x) * kLd),
            Buffer<T>(panels(kind.gates_u) * kLd),
            Buffer<T>(kMixed ? panels(kind.gates_w) * kLd : 0),
            Buffer<T>(panels(kind.gates_x) * chunk_ * N * kLd),
            Buffer<T>(used ? 2 * N * ld_state : 0),
            Buffer<O>(used && kRounds ? 2 * N * ld_state : 0),
            Buffer<T>(used ? kind.own * N * ld_cell : 0),
            Buffer<O>(used && s.projected ? N * ld_cell : 0),
            Buffer<T>(used ? cut * N * kLd : 0)};
  }
};

}  // namespace FASTRNN_NAMESPACE
