// A step of a layer forward: the recurrent product and, panel by panel, while its sums are in one
// tile, the cells' arithmetic, and where its results go.
#pragma once

#include "cpu/forward_state.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
struct ForwardStep
    : ForwardState<Layer<Cell, Stored>, Stored, Layer<Cell, Stored>::kGated, Cell::kGates> {
  using Base = ForwardState<Layer<Cell, Stored>, Stored, Layer<Cell, Stored>::kGated, Cell::kGates>;
  using Base::Base;
  using Base::chunk_, Base::direction_, Base::f, Base::G, Base::H, Base::kGated, Base::kLd,
      Base::kRounds, Base::kUnitRegisters, Base::ld_cell, Base::ld_state, Base::N, Base::P,
      Base::place, Base::s, Base::S, Base::x_part;
  using typename Base::Direction;
  using typename Base::Gated;
  using typename Base::O;
  using typename Base::Step;
  using typename Base::T;
  using typename Base::V;

  // What a thread needs for its steps.
  struct Worker {
    explicit Worker(const ForwardStep&) {}
  };
  // Panels between which a step can be cut.
  int64_t cut() const { return 1; }

  // Some registers of units. With kRows register i is that of row n + i, at the same units.
  // Without, it is of row n, at `column` + i kLanes. x and u point at gate 0 of the first register;
  // those of the next are x_step and u_step numbers on.
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
    // Numbers between gates, of each register. What lies behind a gate's units is of no unit.
    const auto gate = [&](const T* first, int64_t step, int g) {
      return each_of<R>([&](int r) {
        const int64_t apart = direction_[0].hh.apart(kRows ? column : column + r * kLanes<T>);
        return load<V>(first + r * step + g * apart);
      });
    };
    W x_part[G], u_part[G], saved[S > 0 ? S : 1], c{}, h{};
    if (!s.projected)
      h = load_each(now.h_prev + n * ld_state + column, kRows ? ld_state : kLanes<T>);
    for (int g = 0; g < G; ++g) {
      const W product = gate(u, u_step, g);
      x_part[g] = Cell::kSplit ? gate(x, x_step, g) : product;
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

  // u = W_hh h_{t-1} + bias for the units of some panels, and their cells.
  void recurrent_product(Worker&, const Step& now, int64_t step, Range panels) {
    if (now.rows == 0) return;
    if (now.rows > 1)
      return this->each_panel(step, panels,
                              [&](int64_t p, int64_t next) { panel_product(now, p, next); });
    this->each_panel(step, {0, ceil_div(panels.count(), kRowPanels)}, [&](int64_t group, int64_t) {
      const int64_t first = panels.first + group * kRowPanels;
      row_product(now, {first, min(panels.last, first + kRowPanels)});
    });
  }

 private:
  // Panels that a single row meets before their cells.
#if defined(FASTRNN_LANES)
  static constexpr int kRowPanels = 4;  // all at once
#else
  static constexpr int kRowPanels = max(1, kTogether / kUnitRegisters);
#endif

  void row_product(const Step& now, Range panels) {
    alignas(64) T tile[kRowPanels * kLd];
    const auto& w = direction_[now.d];
    const auto x = [&](int64_t p) { return x_part(now.d, p, now.chunk_row); };
    const auto init = [&](int64_t p) -> const T* { return Cell::kSplit ? w.b_hh + p * kLd : x(p); };
    const int64_t apart = chunk_ * N * kLd;  // of the panels of x_part
#if defined(FASTRNN_LANES)
    if (panels.count() == kRowPanels && !w.hh.get(panels.last - 1).fewer)
      lane_row<O, kGated, kRowPanels>(now.left, w.hh.get(panels.first).data, w.hh.stride(), P,
                                      init(panels.first), Cell::kSplit ? kLd : apart, tile);
    else
#endif
      for (int64_t p = panels.first; p < panels.last; ++p) {
        const Panel<O> panel = w.hh.get(p);
        micro_of<O, kGated>(1, panel)(now.left, ld_state, panel, P, init(p), 0,
                                      tile + (p - panels.first) * kLd, kLd, {});
      }
    // Cells of the registers of one panel, or of one of each.
    constexpr int kAtOnce = kUnitRegisters > 1 ? 1 : kRowPanels;
    for (int64_t p = panels.first; p < panels.last; p += kAtOnce) {
      const int64_t first = p * Gated::kUnits;
      const int64_t last = min(panels.last, p + kAtOnce) * Gated::kUnits;
      cells(now, ceil_div(min(H, last) - first, kLanes<T>),
            Units<false>{0, first, x(p), tile + (p - panels.first) * kLd,
                         kAtOnce == 1 ? kLanes<T> : apart, kAtOnce == 1 ? kLanes<T> : kLd});
    }
  }

  // For the units of one panel, tile by tile, each followed by its cells.
  void panel_product(const Step& now, int64_t p, int64_t next) {
    const Panel<O> panel = direction_[now.d].hh.get(p);
    const O* const far = direction_[now.d].hh.far(next);
    alignas(64) T tile[kTileRows<O, kGated> * kLd];
    const T* const x = x_part(now.d, p, now.chunk_row);
    const T* init = Cell::kSplit ? direction_[now.d].b_hh + p * kLd : x;
    int64_t ld_init = Cell::kSplit ? 0 : kLd;
    const int64_t depth = panel_depth<O, kGated>(P, now.rows), head = (P - 1) / depth * depth;
    if (head > 0) {
      multiply<O, kGated>(now.left, ld_state, now.rows, head, panel,
                          far ? panel.from(head).data : nullptr, init, ld_init, now.partial, kLd);
      init = now.partial;
      ld_init = kLd;
    }
    const Tiles<O, kGated> tiles(now.rows);
    Ahead ahead = ahead_of<O, kGated>(far, tiles.count);
    const T* const next_x = x_part(now.d, next, now.chunk_row);
    for (int64_t j = 0, i = 0, rows; j < tiles.count; ++j, i += rows) {
      rows = tiles.rows(j);
      if (f.save) this->prefetch_saved(now, p * Gated::kUnits, i, rows);
      if (ahead.stride > 0) prefetch(next_x + i * kLd, rows * kLd * sizeof(T));
      micro_of<O, kGated>(rows, panel)(now.left + i * ld_state + head, ld_state, panel.from(head),
                                       P - head, init + i * ld_init, ld_init, tile, kLd, ahead);
      ahead.move(depth);
      for (int u = 0; u < kUnitRegisters; ++u) {
        const int64_t column = p * Gated::kUnits + u * kLanes<T>;
        if (column >= H) break;
        this->cells(
            now, rows,
            Units<true>{i, column, x + i * kLd + u * kLanes<T>, tile + u * kLanes<T>, kLd, kLd});
      }
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
