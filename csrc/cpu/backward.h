// A layer from the last step to the first.
//
// For one chunk of steps after the other: each step the cell's derivatives along the rows, then,
// unless they are all zero, the product that carries them to the step before; after the chunk what
// gradients.h makes of it.
#pragma once

#include "cpu/gradients.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
class BackwardPass : Gradients<Cell, Stored> {
  using Base = Gradients<Cell, Stored>;
  using Base::active, Base::b_, Base::chunk_, Base::D, Base::direction_, Base::f, Base::G, Base::H,
      Base::I, Base::kNone, Base::ld_cell, Base::ld_gates, Base::ld_state, Base::ld_y_, Base::N,
      Base::P, Base::parallel, Base::row, Base::rows_of, Base::s, Base::S, Base::split, Base::place,
      Base::entry, Base::note_live, Base::previous_h, Base::zero_, Base::zero_state_;
  using typename Base::Direction;
  using typename Base::O;
  using typename Base::Plain;
  using typename Base::T;
  using typename Base::V;

  const T grad_clip_;
  fastrnn::cpu::Team teams_[2];

 public:
  BackwardPass(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward, threads),
        grad_clip_(static_cast<T>(backward.grad_clip)),
        teams_{{split.units, split.slices}, {split.units, split.slices}} {}

  void operator()() {
    prepare();
    if (s.steps == 0 && b_.need_weights) this->weight_gradients(0, {0, 0}, /*add=*/false, 1);
    for (int64_t last = s.steps; last > 0; last -= min(last, chunk_)) {
      const Range steps{max(0, last - chunk_), last};
      if (split.units > 1) {
        this->share(D * split.units, [&](int64_t task) { team_loop(task % D, steps, task / D); });
      } else {
        this->share(D * split.rows, [&](int64_t task) {
          const Range batch = this->block(task / D);
          if (batch.count() > 0) time_loop(task % D, batch, steps);
        });
      }
      for (int64_t d = 0; d < D && b_.dx; ++d)
        this->share(parallel.threads, [&](int64_t task) { this->input_gradient(task, d, steps); });
      if (b_.need_weights)
        this->share(parallel.threads, [&](int64_t task) {
          this->weight_gradients(task, steps, last < s.steps, parallel.threads);
        });
    }
    for (int64_t i = 0; i < D * N; ++i) {
      const Direction& w = direction_[i / N];
      const int64_t n = i % N, to = i / N * N + entry(n);
      if (b_.dh0) copy(b_.dh0 + to * P, w.d_h + n * ld_state, P);
      if constexpr (Cell::kKeepsC)
        if (b_.dc0) copy(b_.dc0 + to * H, w.d_c + n * ld_cell, H);
    }
  }

 private:
  void prepare() {
    memset(zero_, 0, kWidth<T, kWide> * sizeof(T));
    memset(zero_state_, 0, max(ld_state, ld_cell) * sizeof(Stored));
    if (b_.dx)
      this->each_padding_row([&](int64_t to) { memset(b_.dx + to * I, 0, I * sizeof(Stored)); });
    this->pack(direction_, &Direction::ih, &Direction::hh, &Direction::hr);
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      for (int64_t row = 0; row < chunk_ * N && kGrain<O> > 1; ++row) {
        const int64_t gates = G * H, beyond = (round_up(gates, kGrain<O>) - gates) * sizeof(O);
        memset(w.d_x + row * ld_gates + gates, 0, beyond);
        if constexpr (Cell::kSplit) memset(w.d_u + row * ld_gates + gates, 0, beyond);
        if (s.projected) memset(w.d_y + row * ld_y_ + P, 0, (ld_y_ - P) * sizeof(O));
      }
      for (int64_t n = 0; n < N; ++n) {
        const int64_t from = d * N + entry(n);
        copy_or_zero(w.d_h + n * ld_state, b_.dh_n, from * P, P, ld_state);
        if constexpr (Cell::kKeepsC)
          copy_or_zero(w.d_c + n * ld_cell, b_.dc_n, from * H, H, ld_cell);
      }
      for (int64_t step = 0; step < s.steps; ++step)
        for (int64_t n = 0; n < active(d, step); ++n) {
          const int64_t at = row(d, step) + n;
          const bool first = n >= active(d, step - 1);
          w.previous[at] = f.reset && f.reset[place(at)] ? kNone
                           : first                       ? ~entry(n)
                                                         : place(row(d, step - 1) + n);
        }
    }
  }
  static void copy_or_zero(T* to, const Stored* from, int64_t at, int64_t count, int64_t padded) {
    memset(to, 0, padded * sizeof(T));
    if (from) copy(to, from + at, count);
  }

  const Stored* previous_c(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0       ? f.cells + this->at_cell(d, at)
           : at == kNone ? zero_state_
                         : f.c0 + (d * N + ~at) * H;
  }

  void time_loop(int64_t d, Range batch, Range steps) {
    const Direction& w = direction_[d];
    const Buffer<O> scratch(max(w.hh.scratch(), w.hr.scratch()));
    for (int64_t step = steps.last - 1; step >= steps.first; --step) {
      bool zero = !s.projected || projection(d, batch, step, steps, scratch);
      zero &= cells(d, batch, step, steps, {0, H});
      if (note_live(d, step, batch, zero) && (step > 0 || b_.dh0))
        recurrent_product(d, batch, step, steps, {0, w.hh.count()}, scratch);
      limit(d, batch, step, {0, P}, {0, H});
    }
  }

  // What a member of a team does of some steps: its slice of the units, all batch rows. The team
  // meets when all units of a step have their derivatives, before the product that mixes them.
  void team_loop(int64_t d, Range steps, int64_t member) {
    const Direction& w = direction_[d];
    const Buffer<O> scratch(w.hh.scratch());
    const Range all{0, N};
    const int64_t done = s.steps - steps.last, base = done + done / chunk_;  // of phases
    teams_[d].run(member, base, base + steps.count() + 1, [&](int64_t phase, int64_t slice) {
      const Range panels = piece(w.hh.count(), slice, teams_[d].slices(), 1);
      const Range units{min(H, panels.first * Plain::kUnits), min(H, panels.last * Plain::kUnits)};
      const int64_t step = steps.last - 1 - (phase - base);
      if (step + 1 < steps.last) {
        if (w.live.at(step + 1) && (step >= 0 || b_.dh0))
          recurrent_product(d, all, step + 1, steps, panels, scratch);
        limit(d, all, step + 1, units, units);
      }
      if (step < steps.first) return;
      const bool zero = cells(d, all, step, steps, units);
      note_live(d, step, piece(N, slice, teams_[d].slices(), 1), zero);
    });
  }

  // d_y, whether all of it is zero, and the gradient of o tanh(c), with a projection.
  bool projection(int64_t d, Range batch, int64_t step, Range steps, O* scratch) {
    Direction& w = direction_[d];
    const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
    O* const d_y = w.d_y + (first - rows_of(d, steps).first) * ld_y_;
    NonZero<V> seen;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t p = 0; p < P; p += kLanes<T>) {
        const Lane<T> lane(p, P);
        const V dh = take(w.d_h + (batch.first + n) * ld_state, d, place(first + n), lane);
        seen.add(dh);
        lane.store_to(d_y + n * ld_y_, dh);
      }
    const bool zero = !seen.any();
    if (zero && this->finite_weights(d)) {
      memset(w.d_m + batch.first * ld_cell, 0, rows * ld_cell * sizeof(T));
      return true;
    }
    for (int64_t p = 0; p < w.hr.count(); ++p)
      multiply<O, kWide>(d_y, ld_y_, rows, P, w.hr.get(p, scratch), w.hr.far(p + 1), zero_, 0,
                         w.d_m + batch.first * ld_cell + p * kWidth<T, kWide>, ld_cell);
    return zero;
  }

  // The derivatives of a step, and whether they are all zero.
  bool cells(int64_t d, Range batch, int64_t step, Range steps, Range units) {
    const int64_t first = row(d, step) + batch.first, to = first - rows_of(d, steps).first;
    NonZero<V> seen;
    for (int64_t n = 0; n < active(d, step, batch); ++n)
      seen = cell(d, batch.first + n, first + n, to + n, units, seen);
    return !seen.any();
  }

  // d_h += du W_hh, for some panels of its columns.
  void recurrent_product(int64_t d, Range batch, int64_t step, Range steps, Range panels,
                         O* scratch) {
    Direction& w = direction_[d];
    const int64_t from = row(d, step) + batch.first - rows_of(d, steps).first;
    this->each_panel(step, panels, [&](int64_t p, int64_t next) {
      T* const d_h = w.d_h + batch.first * ld_state + p * kWidth<T, kWide>;
      multiply<O, kWide>(w.d_hidden() + from * ld_gates, ld_gates, active(d, step, batch), G * H,
                         w.hh.get(p, scratch), w.hh.far(next), d_h, ld_state, d_h, ld_state);
    });
  }

  // What the gradients of the states of the step before lose on the way there, in some columns.
  void limit(int64_t d, Range batch, int64_t step, Range states, Range units) {
    const int64_t later = this->time(d, step) + d;  // of the two steps
    const bool detach = b_.detach_every > 0 && later % b_.detach_every == 0;
    if (!detach && !f.reset && !(grad_clip_ > 0)) return;
    Direction& w = direction_[d];
    for (int64_t n = batch.first; n < batch.first + active(d, step, batch); ++n) {
      const int64_t before = w.previous[row(d, step) + n];
      T *const d_h = w.d_h + n * ld_state, *const d_c = w.d_c + n * ld_cell;
      if (before == kNone || (detach && before >= 0)) {
        memset(d_h + states.first, 0, states.count() * sizeof(T));
        if constexpr (Cell::kKeepsC) memset(d_c + units.first, 0, units.count() * sizeof(T));
      } else if (grad_clip_ > 0) {
        for (int64_t p = states.first; p < states.last; ++p)  // a NaN stays
          d_h[p] = d_h[p] > grad_clip_ ? grad_clip_ : d_h[p] < -grad_clip_ ? -grad_clip_ : d_h[p];
      }
    }
  }

  // The complete gradient of h_t: from later steps, of which nothing is left, and of y.
  V take(T* d_h, int64_t d, int64_t row, Lane<T> lane) {
    V dh = load<V>(d_h + lane.at);
    if (b_.dy) dh += lane.load_from(b_.dy + this->at_y(d, row));
    store<V>(d_h + lane.at, V{});
    return dh;
  }

  // The cell's derivatives along one row, for some units: row n of the states, `row` in the order
  // of time, `to` of the chunk's matrices. Returns what was seen before and those.
  NonZero<V> cell(int64_t d, int64_t n, int64_t row, int64_t to, Range units, NonZero<V> seen) {
    Direction& w = direction_[d];
    const int64_t own = place(row);
    T* const d_h = w.d_h + n * ld_state;
    for (int64_t at = units.first; at < units.last; at += kLanes<T>) {
      const Lane<T> lane(at, H);
      V saved[S > 0 ? S : 1], dx[G], du[G], h_prev{}, h{}, c_prev{}, c{}, dc{};
      for (int i = 0; i < S; ++i) saved[i] = lane.load_from(this->gates(d, own) + i * H);
      if constexpr (Cell::kSplit) h_prev = lane.load_from(previous_h(d, row));
      if constexpr (S == 0) h = lane.load_from(f.y + this->at_y(d, own));
      if constexpr (Cell::kKeepsC) {
        c_prev = lane.load_from(previous_c(d, row));
        c = lane.load_from(f.cells + this->at_cell(d, own));
        dc = load<V>(w.d_c + n * ld_cell + at);
        if (b_.dcells) dc += lane.load_from(b_.dcells + this->at_cell(d, own));
      }
      const V dh = s.projected ? load<V>(w.d_m + n * ld_cell + at) : take(d_h, d, own, lane);
      const V past = Cell::backward(saved, h_prev, h, c_prev, c, dh, dc, dx, du);
      if constexpr (Cell::kSplit) store<V>(d_h + at, past + V{});  // no zero has a sign
      if constexpr (Cell::kKeepsC) store<V>(w.d_c + n * ld_cell + at, dc);
      for (int g = 0; g < G; ++g) {
        seen.add(dx[g]);
        if constexpr (Cell::kSplit) seen.add(du[g]);
        lane.store_to(w.d_x + to * ld_gates + g * H, dx[g]);
        if constexpr (Cell::kSplit) lane.store_to(w.d_u + to * ld_gates + g * H, du[g]);
      }
    }
    return seen;
  }
};

}  // namespace FASTRNN_NAMESPACE
