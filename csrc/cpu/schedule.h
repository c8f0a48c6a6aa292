// How a CPU runs a layer.
//
// Both passes go through time in chunks of steps that stay in the cache. Forward: the input part of
// the pre-activations of all rows of a chunk in one product, then its steps one after the other;
// when a micro-kernel has run down a panel of W_hh, all gates of its units are in one tile, and the
// cell's arithmetic follows at once. Backward: the steps of a chunk in the opposite order, each the
// cell's derivatives along the rows and then the product that carries them to the step before, and
// after the chunk one product each for the gradients of its inputs and of every weight.
//
// Work is given to threads by direction and by batch rows, which never meet; products over all
// rows are split by rows of their result.
#pragma once

#include "cpu/gemm.h"
#include "layer.h"

namespace FASTRNN_NAMESPACE {

using fastrnn::Parallel;
using fastrnn::Sizes;

// Rows of a left-hand matrix that pass through one panel together, and the least rows of a forward
// chunk; a backward chunk has as many as a weight's gradient sums at a time.
inline constexpr int64_t kRowBlock = 120, kBackwardRows = 256;
// A forward chunk's pre-activations take half of a second-level cache, if they are not fewer rows.
inline constexpr int64_t kChunkBytes = 256 * 1024;
// Below this many multiplications a layer runs on one thread: waking another costs as much.
inline constexpr int64_t kThreadWork = 1 << 19;

template <class F>
void run(const Parallel& parallel, int64_t n, F&& body) {
  if (n == 1 || parallel.threads == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
  } else {
    using Body = std::remove_reference_t<F>;
    parallel.run(n, [](int64_t i, void* f) { (*static_cast<Body*>(f))(i); }, &body);
  }
}

// Piece i of n of [0, count), cut at multiples of `unit`.
FASTRNN_FN Range piece(int64_t count, int64_t i, int64_t n, int64_t unit) {
  const int64_t size = round_up(ceil_div(count, n), unit);
  return {min(count, i * size), min(count, (i + 1) * size)};
}

// One register of a row of `columns` numbers; the last one of a row may be partly outside.
template <class T>
struct Lane {
  using V = Vec<T>;
  const int64_t at, valid;

  Lane(int64_t column, int64_t columns)
      : at(column), valid(max(0, min(kLanes<T>, columns - column))) {}
  V load_from(const T* row) const {
    return valid == kLanes<T> ? load<V>(row + at) : load_part<V>(row + at, valid);
  }
  void store_to(T* row, V v) const {
    if (valid == kLanes<T>) {
      store<V>(row + at, v);
    } else {
      store_part<V>(row + at, v, valid);
    }
  }
};

// What forward and backward share: sizes, the order of time, the split of the batch.
template <class Cell, class T>
struct Layer {
  using V = Vec<T>;
  static constexpr int64_t G = Cell::kGates, S = Cell::kSaved;
  static constexpr int kUnitRegisters = G == 1 ? kWide : 1;
  static constexpr int kGated = G * kUnitRegisters;  // registers of a panel of gates
  static constexpr int64_t kPad = 64 / sizeof(T);

  const fastrnn::Forward<T>& f;
  const Sizes& s;
  const int64_t I, H, P, D, N;
  // Rows of states are padded to whole registers, and to no multiple of 4 KiB, which would put
  // all rows of a tile into the same set of the cache.
  const int64_t ld_cell, ld_state;
  const Parallel parallel;
  const int64_t blocks;  // of batch rows, per direction

  Layer(const fastrnn::Forward<T>& forward, const Parallel& threads)
      : f(forward),
        s(f.size),
        I(s.input),
        H(s.hidden),
        P(s.state),
        D(s.directions),
        N(s.batch),
        ld_cell(round_up(H, kWidth<T, kWide>) + kPad),
        ld_state(round_up(P, kWidth<T, kWide>) + kPad),
        parallel{s.rows * G * H * (I + P) < kThreadWork ? 1 : threads.threads, threads.run},
        blocks(max(1, min(ceil_div(parallel.threads, D), N / 2))) {}

  // Time of the step'th step that direction d processes, and how many rows are active there.
  int64_t time(int64_t d, int64_t step) const { return d == 0 ? step : s.steps - 1 - step; }
  int64_t active(int64_t d, int64_t step) const {
    return step < 0 || step >= s.steps ? 0 : s.active[time(d, step)];
  }
  // First row of the matrices at that step, and the number of rows there of a batch block.
  int64_t row(int64_t d, int64_t step) const { return s.offset[time(d, step)]; }
  int64_t active(int64_t d, int64_t step, Range batch) const {
    return max(0, min(batch.last, active(d, step)) - batch.first);
  }

  // Batch rows of block b, in equal shares of the work: row n is active in as many steps as have
  // more than n rows.
  Range block(int64_t b) const {
    Range range{N, N};
    int64_t before = 0, steps = s.steps;
    for (int64_t n = 0; n < N; ++n) {
      while (steps > 0 && s.active[steps - 1] <= n) --steps;
      const int64_t owner = min(blocks - 1, before * blocks / max(1, s.rows));
      if (owner >= b && range.first == N) range.first = n;
      if (owner > b) {
        range.last = n;
        break;
      }
      before += steps;
    }
    return range;
  }

  // Steps of a chunk that has at least `rows` rows where the batch is full.
  int64_t chunk(int64_t rows) const { return min(s.steps, ceil_div(rows, max(1, N))); }
  // Rows of the matrices that a range of steps owns.
  Range rows_of(int64_t d, Range steps) const {
    const int64_t a = time(d, steps.first), b = time(d, steps.last - 1);
    return {s.offset[min(a, b)], s.offset[max(a, b)] + s.active[max(a, b)]};
  }

  T* gates(int64_t d, int64_t row) const { return f.gates + (d * s.rows + row) * S * H; }
  T* cells(int64_t d, int64_t row) const { return f.cells + (d * s.rows + row) * H; }
  T* hidden(int64_t d, int64_t row) const { return f.hidden + (d * s.rows + row) * H; }
  int64_t at_y(int64_t d, int64_t row) const { return row * D * P + d * P; }
};

// ------------------------------------------------------------------------------------- forward

template <class Cell, class T>
class ForwardPass : Layer<Cell, T> {
  using Base = Layer<Cell, T>;
  using Base::active, Base::blocks, Base::D, Base::f, Base::G, Base::H, Base::I, Base::kGated,
      Base::kUnitRegisters, Base::ld_cell, Base::ld_state, Base::N, Base::P, Base::parallel,
      Base::row, Base::rows_of, Base::s, Base::S;
  using typename Base::V;
  using Gated = Panels<T, kGated, int(Base::G), true>;
  using Projection = Panels<T, kWide, 1, true>;
  static constexpr int64_t kLd = kWidth<T, kGated>;

  struct Direction {
    Gated ih, hh;
    Projection hr;
    Buffer<T> b_ih, b_hh;  // [panels, kLd] interleaved like the panels
    Buffer<T> x_part;      // [panels, rows of a chunk, kLd] W_ih x + b, tile by tile
    Buffer<T> h;           // [2, N, ld_state] h of the last step and of this one
    Buffer<T> c;           // [N, ld_cell]
    Buffer<T> m;           // [N, ld_cell] o tanh(c), before the projection
  };

  const bool keep_;      // packed weights; a single step uses every panel once
  const int64_t chunk_;  // time steps
  Direction direction_[2];
  Buffer<T> zero_;

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<T>& w = f.weights[used ? d : 0];
    const int64_t panels = ceil_div(H, Gated::kUnits);
    return {Gated(w.w_ih, I, H, used && keep_),
            Gated(w.w_hh, P, H, used && keep_),
            Projection(w.w_hr, H, P, used && keep_),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used ? panels * chunk_ * N * kLd : 0),
            Buffer<T>(used ? 2 * N * ld_state : 0),
            Buffer<T>(used && Cell::kState ? N * ld_cell : 0),
            Buffer<T>(used && s.projected ? N * ld_cell : 0)};
  }

 public:
  ForwardPass(const fastrnn::Forward<T>& forward, const Parallel& threads)
      : Base(forward, threads),
        keep_(s.steps > 1),
        chunk_(this->chunk(max(kRowBlock, kChunkBytes / (G * H * int64_t{sizeof(T)})))),
        direction_{make(0), make(1)},
        zero_(kLd > kWidth<T, kWide> ? kLd : kWidth<T, kWide>) {}

  void operator()() {
    prepare();
    for (int64_t from = 0; from < s.steps; from += chunk_) {
      const Range steps{from, min(s.steps, from + chunk_)};
      run(parallel, D * parallel.threads, [&](int64_t task) { input_product(task, steps); });
      run(parallel, D * blocks, [&](int64_t task) {
        const Range batch = this->block(task / D);
        if (batch.count() > 0) time_loop(task % D, batch, steps);
      });
    }
  }

 private:
  // Packs weights and biases, and copies the initial states.
  void prepare() {
    memset(zero_, 0, max(kLd, kWidth<T, kWide>) * sizeof(T));
    const int64_t gated = direction_[0].ih.count(), projection = direction_[0].hr.count();
    if (keep_)
      run(parallel, D * (2 * gated + projection), [&](int64_t task) {
        Direction& w = direction_[task % D];
        const int64_t panel = task / D;
        if (panel < gated) {
          w.ih.keep(panel);
        } else if (panel < 2 * gated) {
          w.hh.keep(panel - gated);
        } else {
          w.hr.keep(panel - 2 * gated);
        }
      });
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      const Gated b_ih(f.weights[d].b_ih, 1, H, false), b_hh(f.weights[d].b_hh, 1, H, false);
      for (int64_t p = 0; p < gated; ++p) {
        b_ih.pack(p, w.b_ih + p * kLd);
        b_hh.pack(p, w.b_hh + p * kLd);
      }
      // Where the cell only sees x + u, the recurrent product starts from x_part, both biases in.
      if constexpr (!Cell::kSplit)
        for (int64_t i = 0; i < gated * kLd; ++i) w.b_ih[i] += w.b_hh[i];
      for (int64_t n = 0; n < N; ++n) {
        // Both halves: a row of the reverse direction may enter at an odd step.
        memcpy(w.h + n * ld_state, f.h0 + (d * N + n) * P, P * sizeof(T));
        memcpy(w.h + (N + n) * ld_state, f.h0 + (d * N + n) * P, P * sizeof(T));
        if constexpr (Cell::kState)
          memcpy(w.c + n * ld_cell, f.c0 + (d * N + n) * H, H * sizeof(T));
      }
    }
  }

  T* x_part(int64_t d, int64_t panel, int64_t chunk_row) {
    return direction_[d].x_part + (panel * chunk_ * N + chunk_row) * kLd;
  }

  // x_part = x W_ih^T + bias for one thread's share of a chunk's rows.
  void input_product(int64_t task, Range steps) {
    const int64_t d = task % D;
    const Direction& w = direction_[d];
    const Range all = rows_of(d, steps);
    const Range rows = piece(all.count(), task / D, parallel.threads, kTileRows<kGated>);
    const Buffer<T> scratch(w.ih.scratch());
    for (int64_t p = 0; p < w.ih.count(); ++p) {
      const T* const panel = w.ih.get(p, scratch);
      for (int64_t i = rows.first; i < rows.last; i += kRowBlock)
        multiply<T, kGated>(f.x + (all.first + i) * I, I, min(kRowBlock, rows.last - i), I, panel,
                            w.b_ih + p * kLd, 0, x_part(d, p, i), kLd);
    }
  }

  // One step of one batch block.
  struct Step {
    int64_t d, row, chunk_row, rows;  // first row of the matrices and of x_part, their number
    const T* h_prev;                  // [rows, ld_state]
    T *h, *c, *m;                     // h [rows, ld_state], c and m [rows, ld_cell]
  };

  void time_loop(int64_t d, Range batch, Range steps) {
    Direction& w = direction_[d];
    const Buffer<T> partial(batch.count() * kLd), scratch(max(w.hh.scratch(), w.hr.scratch()));
    for (int64_t step = steps.first; step < steps.last; ++step) {
      const int64_t first = row(d, step) + batch.first;
      const Step now{d,
                     first,
                     first - rows_of(d, steps).first,
                     active(d, step, batch),
                     w.h + ((step & 1) * N + batch.first) * ld_state,
                     w.h + ((~step & 1) * N + batch.first) * ld_state,
                     Cell::kState ? w.c + batch.first * ld_cell : nullptr,
                     s.projected ? w.m + batch.first * ld_cell : nullptr};
      for (int64_t p = 0; p < w.hh.count(); ++p)
        recurrent_product(now, p, w.hh.get(p, scratch), partial);
      for (int64_t p = 0; p < w.hr.count(); ++p)
        multiply<T, kWide>(now.m, ld_cell, now.rows, H, w.hr.get(p, scratch), zero_, 0,
                           now.h + p * kWidth<T, kWide>, ld_state);
      for (int64_t n = 0; n < now.rows && s.projected; ++n)
        memcpy(f.y + this->at_y(d, first + n), now.h + n * ld_state, P * sizeof(T));
      // Rows whose last step this was.
      for (int64_t n = active(d, step + 1, batch); n < now.rows; ++n) {
        const int64_t to = d * N + batch.first + n;
        memcpy(f.h_n + to * P, now.h + n * ld_state, P * sizeof(T));
        if constexpr (Cell::kState) memcpy(f.c_n + to * H, now.c + n * ld_cell, H * sizeof(T));
      }
    }
  }

  // u = W_hh h_{t-1} + bias for the units of one panel, tile by tile, each followed by the cell.
  void recurrent_product(const Step& now, int64_t p, const T* panel, T* partial) {
    alignas(64) T tile[kTileRows<kGated> * kLd];
    const T* const x = x_part(now.d, p, now.chunk_row);
    const T* init = Cell::kSplit ? direction_[now.d].b_hh + p * kLd : x;
    int64_t ld_init = Cell::kSplit ? 0 : kLd;
    const int64_t depth = panel_depth<T, kGated>(P), head = (P - 1) / depth * depth;
    if (head > 0) {
      multiply<T, kGated>(now.h_prev, ld_state, now.rows, head, panel, init, ld_init, partial, kLd);
      init = partial;
      ld_init = kLd;
    }
    for (int64_t i = 0, rows; i < now.rows; i += rows) {
      rows = tile_rows<kGated>(now.rows - i);
      prefetch_share(panel + P * kLd, depth * kLd, i, rows, now.rows);  // the next panel's first
      kMicros<T, kGated>.by_rows[rows - 1](now.h_prev + i * ld_state + head, ld_state,
                                           panel + head * kLd, P - head, init + i * ld_init,
                                           ld_init, tile, kLd);
      for (int u = 0; u < kUnitRegisters; ++u) {
        const Lane<T> lane(p * Gated::kUnits + u * kLanes<T>, H);
        for (int64_t r = 0; r < rows && lane.valid > 0; ++r)
          cell(now, i + r, lane, x + (i + r) * kLd + u * kLanes<T>, tile + r * kLd + u * kLanes<T>);
      }
    }
  }

  // The cell's arithmetic for one register of units of row n: x and u point at its first gate.
  FASTRNN_INLINE void cell(const Step& now, int64_t n, Lane<T> lane, const T* x, const T* u) {
    V x_part[G], u_part[G], saved[S > 0 ? S : 1], c{};
    V h = s.projected ? V{} : load<V>(now.h_prev + n * ld_state + lane.at);
    for (int g = 0; g < G; ++g) {
      const V product = load<V>(u + g * kUnitRegisters * kLanes<T>);
      x_part[g] = Cell::kSplit ? load<V>(x + g * kUnitRegisters * kLanes<T>) : product;
      u_part[g] = Cell::kSplit ? product : V{};
    }
    if constexpr (Cell::kState) c = load<V>(now.c + n * ld_cell + lane.at);
    Cell::forward(x_part, u_part, h, c, saved);
    if constexpr (Cell::kState) store<V>(now.c + n * ld_cell + lane.at, c);
    if (f.save) {
      for (int i = 0; i < S; ++i) lane.store_to(this->gates(now.d, now.row + n) + i * H, saved[i]);
      if constexpr (Cell::kState) lane.store_to(this->cells(now.d, now.row + n), c);
      if (s.projected) lane.store_to(this->hidden(now.d, now.row + n), h);
    }
    if (s.projected) {
      store<V>(now.m + n * ld_cell + lane.at, h);
    } else {
      store<V>(now.h + n * ld_state + lane.at, h);
      lane.store_to(f.y + this->at_y(now.d, now.row + n), h);
    }
  }
};

// ------------------------------------------------------------------------------------ backward

template <class Cell, class T>
class BackwardPass : Layer<Cell, T> {
  using Base = Layer<Cell, T>;
  using Base::active, Base::blocks, Base::D, Base::f, Base::G, Base::H, Base::I, Base::ld_cell,
      Base::ld_state, Base::N, Base::P, Base::parallel, Base::row, Base::rows_of, Base::s, Base::S;
  using typename Base::V;
  using Wide = Panels<T, kWide, 1, false>;
  using Narrow = Panels<T, kNarrow, 1, false>;

  struct Direction {
    Narrow ih;
    Wide hh, hr;
    Buffer<T> d_x;             // [rows of a chunk, G H] gradient of x, the input part
    Buffer<T> d_u;             // [rows of a chunk, G H] gradient of u, where it differs
    Buffer<T> d_y;             // [rows of a chunk, P] complete gradient of h, with a projection
    Buffer<T> d_m;             // [N, ld_cell] gradient of o tanh(c), with a projection
    Buffer<T> d_h;             // [N, ld_state] gradient of h_t from later steps
    Buffer<T> d_c;             // [N, ld_cell] gradient of c_t from later steps
    Buffer<int64_t> previous;  // [rows] row of the step before; ~n for batch row n's first step

    T* d_hidden() const { return Cell::kSplit ? d_u : d_x; }
  };

  const fastrnn::Backward<T>& b_;
  const bool keep_;
  const int64_t chunk_;  // time steps
  Direction direction_[2];
  Buffer<T> zero_;

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<T>& w = f.weights[used ? d : 0];
    const int64_t rows = used ? chunk_ * N : 0;
    return {Narrow(w.w_ih, G * H, I, used && keep_ && b_.dx),
            Wide(w.w_hh, G * H, P, used && keep_),
            Wide(w.w_hr, P, H, used && keep_),
            Buffer<T>(rows * G * H),
            Buffer<T>(Cell::kSplit ? rows * G * H : 0),
            Buffer<T>(s.projected ? rows * P : 0),
            Buffer<T>(used && s.projected ? N * ld_cell : 0),
            Buffer<T>(used ? N * ld_state : 0),
            Buffer<T>(used && Cell::kState ? N * ld_cell : 0),
            Buffer<int64_t>(used ? s.rows : 0)};
  }

 public:
  BackwardPass(const fastrnn::Backward<T>& backward, const Parallel& threads)
      : Base(backward.forward, threads),
        b_(backward),
        keep_(s.steps > 1),
        chunk_(this->chunk(kBackwardRows)),
        direction_{make(0), make(1)},
        zero_(kWidth<T, kWide>) {}

  void operator()() {
    prepare();
    for (int64_t last = s.steps; last > 0; last -= min(last, chunk_)) {
      const Range steps{max(0, last - chunk_), last};
      run(parallel, D * blocks, [&](int64_t task) {
        const Range batch = this->block(task / D);
        if (batch.count() > 0) time_loop(task % D, batch, steps);
      });
      for (int64_t d = 0; d < D && b_.dx; ++d)
        run(parallel, parallel.threads, [&](int64_t task) { input_gradient(task, d, steps); });
      if (b_.need_weights)
        run(parallel, parallel.threads,
            [&](int64_t task) { weight_gradients(task, steps, last < s.steps); });
    }
    for (int64_t i = 0; i < D * N; ++i) {
      const Direction& w = direction_[i / N];
      if (b_.dh0) memcpy(b_.dh0 + i * P, w.d_h + i % N * ld_state, P * sizeof(T));
      if constexpr (Cell::kState)
        if (b_.dc0) memcpy(b_.dc0 + i * H, w.d_c + i % N * ld_cell, H * sizeof(T));
    }
  }

 private:
  void prepare() {
    memset(zero_, 0, kWidth<T, kWide> * sizeof(T));
    const int64_t ih = b_.dx ? direction_[0].ih.count() : 0;
    const int64_t hh = direction_[0].hh.count(), hr = direction_[0].hr.count();
    if (keep_)
      run(parallel, D * (ih + hh + hr), [&](int64_t task) {
        Direction& w = direction_[task % D];
        const int64_t panel = task / D;
        if (panel < ih) {
          w.ih.keep(panel);
        } else if (panel < ih + hh) {
          w.hh.keep(panel - ih);
        } else {
          w.hr.keep(panel - ih - hh);
        }
      });
    for (int64_t d = 0; d < D; ++d) {
      Direction& w = direction_[d];
      for (int64_t n = 0; n < N; ++n) {
        copy_or_zero(w.d_h + n * ld_state, b_.dh_n, (d * N + n) * P, P, ld_state);
        if constexpr (Cell::kState)
          copy_or_zero(w.d_c + n * ld_cell, b_.dc_n, (d * N + n) * H, H, ld_cell);
      }
      for (int64_t step = 0; step < s.steps; ++step)
        for (int64_t n = 0; n < active(d, step); ++n)
          w.previous[row(d, step) + n] = n < active(d, step - 1) ? row(d, step - 1) + n : ~n;
    }
  }
  static void copy_or_zero(T* to, const T* from, int64_t at, int64_t count, int64_t padded) {
    memset(to, 0, padded * sizeof(T));
    if (from) memcpy(to, from + at, count * sizeof(T));
  }

  const T* previous_h(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0 ? f.y + this->at_y(d, at) : f.h0 + (d * N + ~at) * P;
  }
  const T* previous_c(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0 ? this->cells(d, at) : f.c0 + (d * N + ~at) * H;
  }

  void time_loop(int64_t d, Range batch, Range steps) {
    Direction& w = direction_[d];
    const Buffer<T> scratch(max(w.hh.scratch(), w.hr.scratch()));
    T* const d_h = w.d_h + batch.first * ld_state;
    for (int64_t step = steps.last - 1; step >= steps.first; --step) {
      const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
      const int64_t chunk_row = first - rows_of(d, steps).first;
      if (s.projected) {
        for (int64_t n = 0; n < rows; ++n)
          for (int64_t p = 0; p < P; p += kLanes<T>) {
            const Lane<T> lane(p, P);
            lane.store_to(w.d_y + (chunk_row + n) * P,
                          take(d_h + n * ld_state, d, first + n, lane));
          }
        for (int64_t p = 0; p < w.hr.count(); ++p)
          multiply<T, kWide>(w.d_y + chunk_row * P, P, rows, P, w.hr.get(p, scratch), zero_, 0,
                             w.d_m + batch.first * ld_cell + p * kWidth<T, kWide>, ld_cell);
      }
      for (int64_t n = 0; n < rows; ++n) cell(d, batch.first + n, first + n, chunk_row + n);
      if (step > 0 || b_.dh0)
        for (int64_t p = 0; p < w.hh.count(); ++p)
          multiply<T, kWide>(w.d_hidden() + chunk_row * G * H, G * H, rows, G * H,
                             w.hh.get(p, scratch), d_h + p * kWidth<T, kWide>, ld_state,
                             d_h + p * kWidth<T, kWide>, ld_state);
    }
  }

  // The complete gradient of h_t: from later steps, of which nothing is left, and of y.
  V take(T* d_h, int64_t d, int64_t row, Lane<T> lane) {
    V dh = load<V>(d_h + lane.at);
    if (b_.dy) dh += lane.load_from(b_.dy + this->at_y(d, row));
    store<V>(d_h + lane.at, V{});
    return dh;
  }

  // The cell's derivatives along one row: batch row n, `row` of the matrices, `to` of the chunk's.
  void cell(int64_t d, int64_t n, int64_t row, int64_t to) {
    Direction& w = direction_[d];
    T* const d_h = w.d_h + n * ld_state;
    for (int64_t at = 0; at < H; at += kLanes<T>) {
      const Lane<T> lane(at, H);
      V saved[S > 0 ? S : 1], dx[G], du[G], h_prev{}, h{}, c_prev{}, c{}, dc{};
      for (int i = 0; i < S; ++i) saved[i] = lane.load_from(this->gates(d, row) + i * H);
      if constexpr (Cell::kSplit) h_prev = lane.load_from(previous_h(d, row));
      if constexpr (S == 0) h = lane.load_from(f.y + this->at_y(d, row));
      if constexpr (Cell::kState) {
        c_prev = lane.load_from(previous_c(d, row));
        c = lane.load_from(this->cells(d, row));
        dc = load<V>(w.d_c + n * ld_cell + at);
      }
      const V dh = s.projected ? load<V>(w.d_m + n * ld_cell + at) : take(d_h, d, row, lane);
      const V past = Cell::backward(saved, h_prev, h, c_prev, c, dh, dc, dx, du);
      if constexpr (Cell::kSplit) store<V>(d_h + at, past);
      if constexpr (Cell::kState) store<V>(w.d_c + n * ld_cell + at, dc);
      for (int g = 0; g < G; ++g) {
        lane.store_to(w.d_x + (to * G + g) * H, dx[g]);
        if constexpr (Cell::kSplit) lane.store_to(w.d_u + (to * G + g) * H, du[g]);
      }
    }
  }

  // dx (+)= d_x W_ih for one thread's share of a chunk's rows. The other direction meets the rows
  // at the other end of time first: where it has been, its part is there already.
  void input_gradient(int64_t task, int64_t d, Range steps) {
    const Range all = rows_of(d, steps);
    const Range rows = piece(all.count(), task, parallel.threads, kTileRows<kNarrow>);
    const auto visited = [&](int64_t row) {
      if (D == 1) return false;
      // What direction 0 has done by now includes this chunk, what direction 1 has done does not.
      const Range other = d == 1 ? rows_of(0, {steps.first, s.steps})
                                 : rows_of(1, {min(steps.last, s.steps - 1), s.steps});
      return (d == 1 || steps.last < s.steps) && row >= other.first && row < other.last;
    };
    const Direction& w = direction_[d];
    const Buffer<T> partial(min(kRowBlock, rows.count()) * kWidth<T, kNarrow>),
        scratch(w.ih.scratch());
    for (int64_t i = rows.first; i < rows.last; i += kRowBlock)
      for (int64_t p = 0; p < w.ih.count(); ++p) {
        const int64_t count = min(kRowBlock, rows.last - i);
        multiply<T, kNarrow>(w.d_x + i * G * H, G * H, count, G * H, w.ih.get(p, scratch), zero_, 0,
                             partial, kWidth<T, kNarrow>);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = all.first + i + r;
          const bool add = visited(row);
          for (int v = 0; v < kNarrow; ++v) {
            const Lane<T> lane(p * kWidth<T, kNarrow> + v * kLanes<T>, I);
            if (lane.valid == 0) break;
            V sum = load<V>(partial + r * kWidth<T, kNarrow> + v * kLanes<T>);
            if (add) sum += lane.load_from(b_.dx + row * I);
            lane.store_to(b_.dx + row * I, sum);
          }
        }
      }
  }

  // One thread's share of the rows of every weight's gradient, summed over a chunk's rows.
  void weight_gradients(int64_t task, Range steps, bool add) {
    const Range gates = piece(G * H, task, parallel.threads, kTileRows<kNarrow>);
    const Range states = piece(P, task, parallel.threads, kTileRows<kNarrow>);
    for (int64_t d = 0; d < D; ++d) {
      const Direction& w = direction_[d];
      const auto& out = b_.dweights[d];
      const auto [first, last] = rows_of(d, steps);
      const int64_t rows = last - first, from = first;
      const auto d_x = [&](int64_t k) { return w.d_x + k * G * H; };
      const auto d_u = [&](int64_t k) { return w.d_hidden() + k * G * H; };
      const auto h = [&](int64_t k) { return previous_h(d, from + k); };
      outer(rows, gates, I, d_x, [&](int64_t k) { return f.x + (from + k) * I; }, out.w_ih, add);
      outer(rows, gates, P, d_u, h, out.w_hh, add);
      if (s.projected)
        outer(
            rows, states, H, [&](int64_t k) { return w.d_y + k * P; },
            [&](int64_t k) { return this->hidden(d, from + k); }, out.w_hr, add);
      if (out.b_ih) {
        column_sums(rows, gates, d_x, out.b_ih, add);
        column_sums(rows, gates, d_u, out.b_hh, add);
      }
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
