// What the two passes of a layer over time share: sizes, the order of time, how work is split.
//
// Both passes (forward.h, backward.h) go through time in chunks of steps that stay in the cache.
// Work is given to threads by direction, and by batch rows or by units (split.h); backward's
// products over all rows of a chunk are split by rows of their result.
#pragma once

#include "cpu/denormals.h"
#include "cpu/panels.h"
#include "cpu/live.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "program.h"

namespace FASTRNN_NAMESPACE {

using fastrnn::Parallel;
using fastrnn::Sizes;

// Rows of a left-hand matrix that pass through one panel together, and the least of a forward
// chunk: whole tiles of all heights.
template <class O>
inline constexpr int64_t kRowBlock = kTiled<O> ? 8 * kLanes<O> : 120;
// A forward chunk's pre-activations take half of a second-level cache, if they are not fewer rows.
inline constexpr int64_t kChunkBytes = 256 * 1024;
// Below this many multiplications, or weights that are far, a layer runs on one thread: waking
// another costs as much.
inline constexpr int64_t kThreadWork = 1 << 19;

// body(task) for each of n, on several threads if there are. All arithmetic is done in such tasks,
// of which each flushes denormal numbers on its own thread.
template <class F>
void run(const Parallel& parallel, int64_t n, F&& body) {
  using fastrnn::cpu::FlushDenormals;
  if (n == 1 || parallel.threads == 1) {
    const FlushDenormals flush;
    for (int64_t i = 0; i < n; ++i) body(i);
  } else {
    using Body = std::remove_reference_t<F>;
    const auto task = [](int64_t i, void* f) {
      const FlushDenormals flush;
      (*static_cast<Body*>(f))(i);
    };
    fastrnn::cpu::run_tasks(parallel, n, task, &body);
  }
}

// Piece i of n > 0 of [0, count), cut at multiples of `unit`.
FASTRNN_FN Range piece(int64_t count, int64_t i, int64_t n, int64_t unit) {
  const int64_t size = round_up(ceil_div(count, n), unit);
  return {min(count, i * size), min(count, (i + 1) * size)};
}

// What the passes must know of a cell.
struct Kind {
  int64_t gates_x, gates_u;  // of w_ih and of w_hh
  int64_t saved, own;        // planes for backward, and of c
  bool split;                // whether it sees x and u apart, not their sum
  int64_t gates_w = 0;       // of w_hh, of a second product: see program.h
};
// In memory: GCC 12 passed the numbers {1, 1, 0, 0} of one cell as {1, 1, 1, 1}.
template <class Cell>
inline constexpr Kind kKindOf{Cell::kGates, Cell::kGates, Cell::kSaved, Cell::kKeepsC,
                              Cell::kSplit};

// What forward and backward share: sizes, the order of time, the split of the batch. A layer is
// Stored in memory and computed in T; what is carried from step to step is a T, but for its copies
// that are operands O of products.
template <class Stored>
struct Schedule {
  using T = Compute<Stored>;
  using O = Operand<Stored>;
  using V = Vec<T>;
  // What derivatives are stored as that products will take.
  using Kept = std::conditional_t<kInParts<O>, T, O>;
  static constexpr int64_t kPad = max(64 / sizeof(O), kGrain<O>);

  const fastrnn::Forward<Stored>& f;
  const Sizes& s;
  const Kind kind;
  const int64_t I, H, P, D, N, C;
  const int64_t total;  // rows that belong to a step
  // Rows of states are padded to whole registers; no row is a multiple of 4 KiB long, which would
  // put all rows into the same few sets of the caches.
  const int64_t ld_cell, ld_state, ld_gates;
  const Parallel parallel;
  const fastrnn::cpu::Split split;  // of a direction's loop over time

  Schedule(const fastrnn::Forward<Stored>& forward, const Parallel& threads, const Kind& cell)
      : f(forward),
        s(f.size),
        kind(cell),
        I(s.input),
        H(s.hidden),
        P(s.state),
        D(s.directions),
        N(s.batch),
        C(kind.own * H),
        total(s.steps ? s.offset[s.steps - 1] + s.active[s.steps - 1] : 0),
        ld_cell(round_up(H, kWidth<T, kWide>) + kPad),
        ld_state(round_up(P, kWidth<T, kWide>) + kPad),
        ld_gates(round_up(max(kind.gates_x, max(kind.gates_u, kind.gates_w)) * H, kPad) + kPad),
        parallel{worth_threads() ? threads.threads : 1, threads.run},
        split(fastrnn::cpu::split_step({N, (kind.gates_u + kind.gates_w) * H, P, sizeof(O)},
                                       ceil_div(parallel.threads, D),
                                       uniform() ? ceil_div(H, kWidth<T, kWide>) : 1)) {}

  bool worth_threads() const {
    const int64_t hidden = (kind.gates_u + kind.gates_w) * P / s.heads;
    const int64_t weights = D * H * (kind.gates_x * I + hidden),
                  bytes = weights * int64_t{sizeof(Stored)};
    return total * weights / D >= kThreadWork || bytes > kNearBytes;
  }

  // Whether all steps have all rows, and a step is one product and a cell: only then do threads
  // share the units.
  bool uniform() const {
    return s.steps > 1 && s.active[s.steps - 1] == N && !s.place && !f.reset && !s.projected &&
           !(f.program && (f.program->row_sums || kind.gates_u == 0 || s.heads > 1)) &&
           kind.gates_w == 0;
  }

  // body(task) for each of n, which may multiply.
  template <class F>
  void share(int64_t n, F&& body) const {
    run(parallel, n, [&](int64_t task) {
      [[maybe_unused]] const Multiplying<O> multiplying(f.parts);
      body(task);
    });
  }

  // Row of the matrices of a row in the order of time; entry of the states of a step's n'th row.
  int64_t place(int64_t row) const { return s.place ? s.place[row] : row; }
  int64_t entry(int64_t n) const { return s.order ? s.order[n] : n; }
  // Calls body(row of the matrices) for those that belong to no step.
  template <class F>
  void each_padding_row(F&& body) const {
    if (s.order == nullptr) return;
    for (int64_t t = 0; t * N < s.rows; ++t)
      for (int64_t n = t < s.steps ? s.active[t] : 0; n < N; ++n) body(t * N + s.order[n]);
  }

  // Time of the step'th step that direction d processes, and how many rows are active there.
  int64_t time(int64_t d, int64_t step) const { return d == 0 ? step : s.steps - 1 - step; }
  int64_t active(int64_t d, int64_t step) const {
    return step < 0 || step >= s.steps ? 0 : s.active[time(d, step)];
  }
  // First row of that step in the order of time, and the number of rows there of a batch block.
  int64_t row(int64_t d, int64_t step) const { return s.offset[time(d, step)]; }
  int64_t active(int64_t d, int64_t step, Range batch) const {
    return max(0, min(batch.last, active(d, step)) - batch.first);
  }

  // Batch rows of block b of split.rows, in equal shares of the work: row n is active in as many
  // steps as have more than n rows.
  Range block(int64_t b) const {
    Range range{N, N};
    int64_t before = 0, steps = s.steps;
    for (int64_t n = 0; n < N; ++n) {
      while (steps > 0 && s.active[steps - 1] <= n) --steps;
      const int64_t owner = min(split.rows - 1, before * split.rows / max(1, total));
      if (owner >= b && range.first == N) range.first = n;
      if (owner > b) {
        range.last = n;
        break;
      }
      before += steps;
    }
    return range;
  }

  // Steps of a chunk: as many as make `most` rows of `batch` a step, but enough for `least`.
  int64_t chunk(int64_t batch, int64_t least, int64_t most) const {
    const int64_t rows = max(1, batch), enough = max(1, ceil_div(least, rows));
    return min(s.steps, max(enough, most / rows));
  }
  template <class F>
  void each_chunk(int64_t chunk, F&& body) const {
    for (int64_t from = 0; from < s.steps; from += chunk)
      body(Range{from, min(s.steps, from + chunk)});
  }
  // Rows, in the order of time, of a range of steps.
  Range rows_of(int64_t d, Range steps) const {
    if (steps.count() == 0) return {0, 0};
    const int64_t a = time(d, steps.first), b = time(d, steps.last - 1);
    return {s.offset[min(a, b)], s.offset[max(a, b)] + s.active[max(a, b)]};
  }

  // Rows of a batch block in some steps.
  int64_t count(int64_t d, Range batch, Range steps) const {
    int64_t rows = 0;
    for (int64_t step = steps.first; step < steps.last; ++step) rows += active(d, step, batch);
    return rows;
  }
  // body(step, those of the rows that come before it in the order of time).
  template <class F>
  void each_step(int64_t d, Range batch, Range steps, F&& body) const {
    int64_t before = d == 0 ? 0 : count(d, batch, steps);
    for (int64_t step = steps.first; step < steps.last; ++step) {
      const int64_t rows = active(d, step, batch);
      if (d == 1) before -= rows;
      body(step, before);
      if (d == 0) before += rows;
    }
  }

  // Packs the given weights of all directions, where they are kept.
  template <class Direction, class... Weight>
  void pack(Direction (&direction)[2], Weight Direction::*... weights) const {
    const int64_t panels = ((direction[0].*weights).count() + ...);
    run(parallel, D * panels, [&](int64_t task) {
      int64_t panel = task / D;
      const auto pack_here = [&](auto& weight) {
        if (weight.packed && panel >= 0 && panel < weight.count()) weight.keep(panel);
        panel -= weight.count();
      };
      (pack_here(direction[task % D].*weights), ...);
    });
  }

  // body(panel, the one after it) for a range of a weight's panels, up and down in turns: what the
  // step before read last is still in the cache.
  template <class F>
  static void each_panel(int64_t step, Range panels, F&& body) {
    const bool up = step % 2 == 0;
    for (int64_t i = 0; i < panels.count(); ++i) {
      const int64_t p = up ? panels.first + i : panels.last - 1 - i;
      body(p, i + 1 == panels.count() ? p : up ? p + 1 : p - 1);
    }
  }

  // Where a row of the matrices begins.
  Stored* gates(int64_t d, int64_t row) const {
    return f.gates + (d * s.rows + row) * kind.saved * H;
  }
  int64_t at_cell(int64_t d, int64_t row) const { return (d * s.rows + row) * C; }
  int64_t at_hidden(int64_t d, int64_t row) const { return (d * s.rows + row) * H; }
  int64_t at_y(int64_t d, int64_t row) const { return row * D * P + d * P; }
};

// The same of a cell of cells.h, whose sizes the compiler knows.
template <class Cell, class Stored>
struct Layer : Schedule<Stored> {
  using Base = Schedule<Stored>;
  using Base::f, Base::H, Base::s;
  using typename Base::T;
  using typename Base::V;
  static constexpr int64_t G = Cell::kGates, S = Cell::kSaved;
  static constexpr int kUnitRegisters = G == 1 ? kWide : 1;
  static constexpr int kGated = G * kUnitRegisters;  // registers of a panel of gates

  Layer(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads, kKindOf<Cell>) {}

  // What backward needs of a register of units: h is that before the projection.
  FASTRNN_INLINE void save(int64_t d, int64_t row, Lane<T> lane, const V* saved, V c, V h) const {
    for (int i = 0; i < S; ++i) lane.store_to(this->gates(d, row) + i * H, saved[i]);
    if constexpr (Cell::kKeepsC) lane.store_to(f.cells + this->at_cell(d, row), c);
    if (s.projected) lane.store_to(f.hidden + this->at_hidden(d, row), h);
  }
};

}  // namespace FASTRNN_NAMESPACE
