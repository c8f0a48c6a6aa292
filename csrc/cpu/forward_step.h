// A step of a layer forward, after its product: the cells' arithmetic, and where its results go.
#pragma once

#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
struct ForwardStep : Layer<Cell, Stored> {
  using Base = Layer<Cell, Stored>;
  using Base::Base;
  using Base::f, Base::G, Base::H, Base::kGated, Base::kUnitRegisters, Base::ld_cell,
      Base::ld_state, Base::place, Base::s, Base::S;
  using typename Base::O;
  using typename Base::T;
  using typename Base::V;
  static constexpr bool kRounds = !std::is_same_v<O, T>;  // h has a copy that is an operand

  // One step of one batch block.
  struct Step {
    int64_t d, row, chunk_row, rows;  // first row in the order of time and of x_part, their number
    T *h_prev, *h, *c;                // h_prev and h [rows, ld_state], c and m [rows, ld_cell]
    O *left, *next_left;              // h_prev and h as operands, where these are others
    O* m;
    T* partial;  // [rows, kLd]
  };

  // Registers of units, of several rows or, without, of several parts of one: the row n and the
  // units of the first, and where its x and u have the first gate. What follows is a distance on.
  template <bool kRows>
  struct Units {
    int64_t n, column;
    const T *x, *u;
    int64_t x_step, u_step;

    Units from(int64_t i) const {
      return {kRows ? n + i : n,
              kRows ? column : column + i * kLanes<T>,
              x + i * x_step,
              u + i * u_step,
              x_step,
              u_step};
    }
  };

  // Lines that `store_cell` will write for backward, from `unit` on: their latency would fill the
  // store buffer. 2 to 4 % of a forward pass in training.
  FASTRNN_INLINE void prefetch_saved(const Step& now, int64_t unit, int64_t first, int64_t rows) {
    for (int64_t n = now.row + first; n < now.row + first + rows; ++n) {
      const int64_t to = place(n);
      for (int i = 0; i < S; ++i) prefetch_write(this->gates(now.d, to) + i * H + unit);
      if constexpr (Cell::kKeepsC) prefetch_write(f.cells + this->at_cell(now.d, to) + unit);
    }
  }

  // Units whose cells are computed together. LSTM, float, AVX2: 25 ns a register one by one, 17
  // with two or more; but what is saved of several does not fit into the registers.
  static constexpr int kTogether = kTileRows<O, kGated> < 4 ? kTileRows<O, kGated> : 4;

  // The cell's arithmetic for `count` registers of units, in groups about equally large.
  template <bool kRows>
  FASTRNN_INLINE void cells(const Step& now, int64_t count, Units<kRows> units) {
    if (f.save && S > 0) {
      for (int64_t i = 0; i < count; ++i) group<1>(now, units.from(i));
      return;
    }
    for (int64_t groups = ceil_div(count, kTogether), i = 0, size; groups > 0;
         --groups, i += size) {
      size = ceil_div(count - i, groups);
      some(std::make_integer_sequence<int, kTogether>{}, size, now, units.from(i));
    }
  }
  template <int... R, bool kRows>
  FASTRNN_INLINE void some(std::integer_sequence<int, R...>, int64_t size, const Step& now,
                           Units<kRows> units) {
    ((size == R + 1 ? group<R + 1>(now, units) : void()), ...);
  }
  template <int R, bool kRows>
  FASTRNN_INLINE void group(const Step& now, Units<kRows> units) {
    using W = Many<V, R>;
    const auto load_each = [&](const T* first, int64_t step) {
      return each_of<R>([&](int r) { return load<V>(first + r * step); });
    };
    const auto [n, column, x, u, x_step, u_step] = units;
    W x_part[G], u_part[G], saved[S > 0 ? S : 1], c{}, h{};
    if (!s.projected)
      h = load_each(now.h_prev + n * ld_state + column, kRows ? ld_state : kLanes<T>);
    for (int g = 0; g < G; ++g) {
      const int64_t at = g * kUnitRegisters * kLanes<T>;
      const W product = load_each(u + at, u_step);
      x_part[g] = Cell::kSplit ? load_each(x + at, x_step) : product;
      u_part[g] = Cell::kSplit ? product : -W{};  // x - 0 is x, of any sign
    }
    if constexpr (Cell::kKeepsC)
      c = load_each(now.c + n * ld_cell + column, kRows ? ld_cell : kLanes<T>);
    Cell::forward(x_part, u_part, h, c, saved);
    FASTRNN_UNROLL
    for (int r = 0; r < R; ++r) {
      V kept[S > 0 ? S : 1];
      for (int i = 0; i < S; ++i) kept[i] = saved[i].v[r];
      const Lane<T> lane(kRows ? column : column + r * kLanes<T>, H);
      store_cell(now, kRows ? n + r : n, lane, kept, c.v[r], h.v[r]);
    }
  }
  FASTRNN_INLINE void store_cell(const Step& now, int64_t n, Lane<T> lane, const V* saved, V c,
                                 V h) {
    const int64_t to = place(now.row + n);
    if constexpr (Cell::kKeepsC) store<V>(now.c + n * ld_cell + lane.at, c);
    if (f.save) this->save(now.d, to, lane, saved, c, h);
    if (s.projected) {
      lane.store_to(now.m + n * ld_cell, h);
    } else {
      store<V>(now.h + n * ld_state + lane.at, h);
      if constexpr (kRounds) lane.store_to(now.next_left + n * ld_state, h);
      lane.store_to(f.y + this->at_y(now.d, to), h);
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
