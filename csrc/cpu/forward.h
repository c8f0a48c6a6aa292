// A layer from the first step to the last.
//
// For one chunk of steps after the other: the input part of the pre-activations of all its rows in
// one product, then the steps. When a micro-kernel has run down a panel of W_hh, all gates of its
// units are in one tile, and the cell's arithmetic follows at once.
#pragma once

#include "cpu/forward_step.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
class ForwardPass : ForwardStep<Cell, Stored> {
  using Base = ForwardStep<Cell, Stored>;
  using Base::active, Base::D, Base::f, Base::G, Base::H, Base::I, Base::kGated, Base::kRounds,
      Base::kTogether, Base::kUnitRegisters, Base::ld_cell, Base::ld_state, Base::N, Base::P,
      Base::parallel, Base::row, Base::rows_of, Base::s, Base::S, Base::split, Base::place,
      Base::entry;
  using typename Base::O;
  using typename Base::Step;
  using typename Base::T;
  template <bool kRows>
  using Units = typename Base::template Units<kRows>;
  using Gated = Panels<Stored, O, kGated, int(Base::G), true>;
  using Bias = Panels<Stored, T, kGated, int(Base::G), true>;
  using Projection = Panels<Stored, O, kWide, 1, true>;
  static constexpr int64_t kLd = kWidth<T, kGated>;

  struct Direction {
    Gated ih, hh;
    Projection hr;
    Buffer<T> b_ih, b_hh;  // [panels, kLd] interleaved like the panels
    Buffer<T> x_part;      // [panels, rows of a chunk, kLd] W_ih x + b, tile by tile
    Buffer<T> h;           // [2, N, ld_state] h of the last step and of this one
    Buffer<O> h_operand;   // the same where kRounds, zero beyond P
    Buffer<T> c;           // [N, ld_cell]
    Buffer<O> m;           // [N, ld_cell] o tanh(c), before the projection; zero beyond H
    Buffer<T> partial;     // [slices, N, kLd] sums of a panel that is cut in depth
  };

  const int64_t chunk_;  // time steps
  Direction direction_[2];
  fastrnn::cpu::Team teams_[2];
  Buffer<T> zero_;

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<const Stored>& w = f.weights[used ? d : 0];
    const int64_t panels = ceil_div(H, Gated::kUnits);
    const int64_t cut = panel_depth<O, kGated>(P, N) < P ? split.units * split.slices : 0;
    return {Gated(w.w_ih, I, H, used),
            Gated(w.w_hh, P, H, used),
            Projection(w.w_hr, H, P, used),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used ? panels * chunk_ * N * kLd : 0),
            Buffer<T>(used ? 2 * N * ld_state : 0),
            Buffer<O>(used && kRounds ? 2 * N * ld_state : 0),
            Buffer<T>(used && Cell::kKeepsC ? N * ld_cell : 0),
            Buffer<O>(used && s.projected ? N * ld_cell : 0),
            Buffer<T>(used ? cut * N * kLd : 0)};
  }

 public:
  ForwardPass(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads),
        chunk_(this->chunk(ceil_div(N, split.rows), kRowBlock<O>,
                           kChunkBytes / (G * H * int64_t{sizeof(T)}))),
        direction_{make(0), make(1)},
        teams_{{split.units, split.slices}, {split.units, split.slices}},
        zero_(kWidth<T, kWide>) {}

  void operator()() {
    pack();
    over_time();
    clear_padding();
  }

  // Packs weights and biases.
  void pack() {
    memset(zero_, 0, kWidth<T, kWide> * sizeof(T));
    Base::pack(direction_, &Direction::ih, &Direction::hh, &Direction::hr);
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      const Bias b_ih(f.weights[d].b_ih, 1, H, false), b_hh(f.weights[d].b_hh, 1, H, false);
      const int64_t panels = w.ih.count();
      for (int64_t p = 0; p < panels; ++p) {
        b_ih.pack(p, w.b_ih + p * kLd);
        b_hh.pack(p, w.b_hh + p * kLd);
      }
      // Where the cell only sees x + u, the recurrent product starts from x_part, both biases in.
      if constexpr (!Cell::kSplit)
        for (int64_t i = 0; i < panels * kLd; ++i) w.b_ih[i] += w.b_hh[i];
    }
  }

  // From the initial states to the final ones.
  void over_time() {
    load_states();
    if (split.units > 1) {
      this->share(D * split.units, [&](int64_t task) { team_loop(task % D, task / D); });
    } else if (D * split.rows >= parallel.threads) {
      this->share(D * split.rows, [&](int64_t task) {
        const Range batch = this->block(task / D);
        const Buffer<O> gathered(gathered_size(batch));
        this->each_chunk(chunk_, [&](Range steps) {
          input_product(task % D, batch, steps, panels(1, 0), gathered);
          time_loop(task % D, batch, steps);
        });
      });
    } else {  // more threads can share the input product than the loop
      this->each_chunk(chunk_, [&](Range steps) {
        this->share(D * parallel.threads, [&](int64_t task) {
          for (int64_t b = 0; b < split.rows; ++b) {
            const Range batch = this->block(b);
            const Buffer<O> gathered(gathered_size(batch));
            input_product(task % D, batch, steps, panels(parallel.threads, task / D), gathered);
          }
        });
        this->share(D * split.rows,
                    [&](int64_t task) { time_loop(task % D, this->block(task / D), steps); });
      });
    }
    for (int64_t i = 0; i < D * N && split.units > 1; ++i)
      store_final(i / N, i % N, h_after(i / N, s.steps - 1, i % N));
  }

 private:
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
        if constexpr (Cell::kKeepsC) copy(w.c + n * ld_cell, f.c0 + from * H, H);
        if constexpr (kRounds)
          if (s.projected) memset(w.m + n * ld_cell, 0, ld_cell * sizeof(O));
      }
    }
  }

  // Results where there is no step: zero in the matrices, the initial state of an empty sequence.
  void clear_padding() {
    this->each_padding_row([&](int64_t to) {
      memset(f.y + to * D * P, 0, D * P * sizeof(Stored));
      for (int64_t d = 0; d < D && f.save; ++d) {
        if constexpr (S > 0) memset(this->gates(d, to), 0, S * H * sizeof(Stored));
        if constexpr (Cell::kKeepsC) memset(f.cells + this->at_cell(d, to), 0, H * sizeof(Stored));
        if (s.projected) memset(f.hidden + this->at_cell(d, to), 0, H * sizeof(Stored));
      }
    });
    for (int64_t d = 0; d < D; ++d)
      for (int64_t n = s.steps ? s.active[0] : 0; n < N; ++n)
        store_final(d, n, direction_[d].h + n * ld_state);
  }
  // The final state of a step's n'th row.
  void store_final(int64_t d, int64_t n, const T* h) {
    const int64_t to = d * N + entry(n);
    copy(f.h_n + to * P, h, P);
    if constexpr (Cell::kKeepsC) copy(f.c_n + to * H, direction_[d].c + n * ld_cell, H);
  }

  // Rows of a batch block begin at that of chunk_ times as many as are before it.
  T* x_part(int64_t d, int64_t panel, int64_t chunk_row) {
    return direction_[d].x_part + (panel * chunk_ * N + chunk_row) * kLd;
  }

  // Piece i of n of the panels, which the two weights that face the gates have alike.
  Range panels(int64_t n, int64_t i) const { return piece(direction_[0].hh.count(), i, n, 1); }

  // Whether the rows of a batch block in a chunk are operands that lie together; otherwise they are
  // gathered, in the order of time, with zeros up to a multiple of kGrain.
  bool lie(Range batch) const {
    return std::is_same_v<Stored, O> && !s.place && batch.count() == N && I % kGrain<O> == 0;
  }
  int64_t gathered_size(Range batch) const {
    return lie(batch) ? 0 : chunk_ * batch.count() * round_up(I, kGrain<O>);
  }

  // x_part = x W_ih^T + bias for a chunk's rows of a batch block, some panels.
  void input_product(int64_t d, Range batch, Range steps, Range panels, O* gathered) {
    const Direction& w = direction_[d];
    const int64_t ld_x = round_up(I, kGrain<O>);
    const int64_t rows = this->count(d, batch, steps);
    if (!lie(batch))
      this->each_step(d, batch, steps, [&](int64_t step, int64_t before) {
        O* to = gathered + before * ld_x;
        const int64_t first = row(d, step) + batch.first;
        for (int64_t n = 0; n < active(d, step, batch); ++n, to += ld_x) {
          memset(to + I, 0, (ld_x - I) * sizeof(O));
          copy(to, f.x + place(first + n) * I, I);
        }
      });
    const O* x = gathered;
    if constexpr (std::is_same_v<Stored, O>)
      if (lie(batch)) x = f.x + rows_of(d, steps).first * I;
    for (int64_t p = panels.first; p < panels.last; ++p) {
      const Panel<O> panel = w.ih.get(p);
      for (int64_t i = 0; i < rows; i += kRowBlock<O>)
        multiply<O, kGated>(x + i * ld_x, ld_x, min(kRowBlock<O>, rows - i), I, panel,
                            w.ih.far(p + 1), w.b_ih + p * kLd, 0,
                            x_part(d, p, chunk_ * batch.first + i), kLd);
    }
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
            Cell::kKeepsC ? w.c + batch.first * ld_cell : nullptr,
            operand_after(d, step - 1, batch.first),
            operand_after(d, step, batch.first),
            s.projected ? w.m + batch.first * ld_cell : nullptr,
            w.partial ? w.partial + partial_row * kLd : nullptr};
  }

  // What a member of a team does: its slice of the units, all batch rows. Each chunk is a phase for
  // the input product and one for every step.
  void team_loop(int64_t d, int64_t member) {
    const Range all{0, N};
    const Buffer<O> gathered(gathered_size(all));
    int64_t phases = 0;
    this->each_chunk(chunk_, [&](Range steps) {
      const int64_t base = phases + 1 - steps.first;  // phase of step 0
      const auto phase = [&](int64_t at, int64_t slice) {
        const Range own = panels(teams_[d].slices(), slice);
        if (at < base + steps.first) return input_product(d, all, steps, own, gathered);
        const int64_t step = at - base, before = row(d, step) - rows_of(d, steps).first;
        recurrent_product(this->at(d, step, all, before, slice * N), step, own);
      };
      teams_[d].run(member, phases, phases + 1 + steps.count(), phase);
      phases += 1 + steps.count();
    });
  }

  void time_loop(int64_t d, Range batch, Range steps) {
    Direction& w = direction_[d];
    this->each_step(d, batch, steps, [&](int64_t step, int64_t before) {
      const int64_t first = row(d, step) + batch.first;
      const Step now = at(d, step, batch, before, batch.first);
      for (int64_t n = 0; n < now.rows && f.reset; ++n)
        if (f.reset[place(first + n)]) {
          memset(now.h_prev + n * ld_state, 0, P * sizeof(T));
          if constexpr (kRounds) memset(now.left + n * ld_state, 0, P * sizeof(O));
          if constexpr (Cell::kKeepsC) memset(now.c + n * ld_cell, 0, H * sizeof(T));
        }
      recurrent_product(now, step, panels(1, 0));
      for (int64_t p = 0; p < w.hr.count(); ++p)
        multiply<O, kWide>(now.m, ld_cell, now.rows, H, w.hr.get(p), w.hr.far(p + 1), zero_, 0,
                           now.h + p * kWidth<T, kWide>, ld_state);
      for (int64_t n = 0; n < now.rows && s.projected; ++n) {
        const T* const h = now.h + n * ld_state;
        copy(f.y + this->at_y(d, place(first + n)), h, P);
        if constexpr (kRounds) copy(now.next_left + n * ld_state, h, P);
      }
      // Rows whose last step this was.
      for (int64_t n = active(d, step + 1, batch); n < now.rows; ++n)
        store_final(d, batch.first + n, now.h + n * ld_state);
    });
  }

  // u = W_hh h_{t-1} + bias for the units of some panels, and their cells.
  void recurrent_product(const Step& now, int64_t step, Range panels) {
    if (now.rows == 0) return;
    if (now.rows > 1)
      return this->each_panel(step, panels,
                              [&](int64_t p, int64_t next) { panel_product(now, p, next); });
    constexpr int64_t kMost = max(1, kTogether / kUnitRegisters);
    this->each_panel(step, {0, ceil_div(panels.count(), kMost)}, [&](int64_t group, int64_t) {
      const int64_t first = panels.first + group * kMost;
      row_product(now, {first, min(panels.last, first + kMost)});
    });
  }

  // For a single row, a few panels before their cells.
  void row_product(const Step& now, Range panels) {
    alignas(64) T tile[kTogether * kLd];
    const Direction& w = direction_[now.d];
    for (int64_t p = panels.first; p < panels.last; ++p) {
      const T* const init = Cell::kSplit ? w.b_hh + p * kLd : x_part(now.d, p, now.chunk_row);
      const Panel<O> panel = w.hh.get(p);
      micro_of<O, kGated>(1, panel)(now.left, ld_state, panel, P, init, 0,
                                    tile + (p - panels.first) * kLd, kLd, {});
    }
    constexpr bool kParts = kUnitRegisters > 1;  // of one panel, or one of each
    const int64_t first = panels.first * Gated::kUnits;
    const int64_t count = ceil_div(min(H, panels.last * Gated::kUnits) - first, kLanes<T>);
    this->cells(now, count,
                Units<false>{0, first, x_part(now.d, panels.first, now.chunk_row), tile,
                             kParts ? kLanes<T> : chunk_ * N * kLd, kParts ? kLanes<T> : kLd});
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
