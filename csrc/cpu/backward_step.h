// A step of a layer backward: the cells' derivatives along the rows.
#pragma once

#include "cpu/gradients.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
struct BackwardStep : Gradients<Stored> {
  using Base = Gradients<Stored>;
  using Base::active, Base::b_, Base::C, Base::D, Base::direction_, Base::f, Base::H, Base::ld_cell,
      Base::ld_gates, Base::ld_state, Base::N, Base::place, Base::previous_c, Base::previous_h,
      Base::row, Base::rows_of, Base::s;
  using typename Base::Direction;
  using typename Base::T;
  using typename Base::V;
  static constexpr int64_t G = Cell::kGates, S = Cell::kSaved;

  // What a thread needs for its steps.
  struct Worker {
    explicit Worker(const BackwardStep&) {}
  };

  BackwardStep(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward, threads, kKindOf<Cell>) {}

  // The derivatives of a step, and whether they are all zero.
  bool cells(Worker&, int64_t d, Range batch, int64_t step, Range steps, Range units) {
    const int64_t first = row(d, step) + batch.first, to = first - rows_of(d, steps).first;
    NonZero<V> seen;
    for (int64_t n = 0; n < active(d, step, batch); ++n)
      seen = cell(d, batch.first + n, first + n, to + n, units, seen);
    return !seen.any();
  }

 private:
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
      if constexpr (Cell::kKeepsH) h_prev = lane.load_from(previous_h(d, row));
      if constexpr (S == 0) h = lane.load_from(f.y + this->at_y(d, own));
      if constexpr (Cell::kKeepsC) {
        c_prev = lane.load_from(previous_c(d, row));
        c = lane.load_from(f.cells + this->at_cell(d, own));
        dc = load<V>(w.d_c + n * ld_cell + at);
        if (b_.dcells) dc += lane.load_from(b_.dcells + this->at_cell(d, own));
      }
      const V dh = s.projected ? load<V>(w.d_m + n * ld_cell + at) : this->take(d_h, d, own, lane);
      const V past = Cell::backward(saved, h_prev, h, c_prev, c, dh, dc, dx, du);
      if constexpr (Cell::kKeepsH) store<V>(d_h + at, past + V{});  // no zero has a sign
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
