// How a CPU runs a layer.
//
// Forward, for one chunk of time steps after the other, small enough to stay in the cache:
// the input part of the pre-activations of all its rows in one product, then the loop over time,
// in which the recurrent product of a step and the cell's arithmetic meet in one tile: when the
// micro-kernel has run down a panel, all gates of its units are in hand. Backward runs the loop
// in the opposite order, with the cell's derivatives in the tile, and ends with one product each,
// over all rows, for the gradients of the input and of every weight.
//
// Work is given to threads by direction and by batch rows, which never meet; products over all
// rows are split by rows of their result.
#pragma once

#include "cpu/gemm.h"
#include "layer.h"

namespace FASTRNN_NAMESPACE {

using fastrnn::Parallel;
using fastrnn::Sizes;

// Rows of a left-hand matrix that pass through one panel together.
inline constexpr int64_t kRowBlock = 120;
// A chunk's pre-activations take half of a second-level cache.
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
  static constexpr int kUnitRegisters = G == 1 ? 2 : 1;
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
        ld_cell(round_up(H, kPlain * kLanes<T>) + kPad),
        ld_state(round_up(P, kPlain * kLanes<T>) + kPad),
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

  T* gates(int64_t d, int64_t row) const { return f.gates + (d * s.rows + row) * S * H; }
  T* cells(int64_t d, int64_t row) const { return f.cells + (d * s.rows + row) * H; }
  T* hidden(int64_t d, int64_t row) const { return f.hidden + (d * s.rows + row) * H; }
  int64_t at_y(int64_t d, int64_t row) const { return row * D * P + d * P; }
};

// ------------------------------------------------------------------------------------- forward

template <class Cell, class T>
class ForwardPass : Layer<Cell, T> {
  using Base = Layer<Cell, T>;
  using typename Base::V;
  using Base::active, Base::blocks, Base::D, Base::f, Base::G, Base::H, Base::I, Base::kGated,
      Base::ld_cell, Base::ld_state, Base::N, Base::P, Base::parallel, Base::row, Base::s, Base::S;
  using Gated = Panels<T, kGated, int(Base::G), true>;
  using Plain = Panels<T, kPlain, 1, true>;
  static constexpr int64_t kLd = kWidth<T, kGated>;

  struct Direction {
    Gated ih, hh;
    Plain hr;
    Buffer<T> b_ih, b_hh;  // [panels, kLd], interleaved like the panels
    Buffer<T> x_part;      // [rows of a chunk, x_row] unless it lives in `gates`
    Buffer<T> h;           // [2, N, ld_state] h of the last step and of this one
    Buffer<T> c;           // [N, ld_cell]
    Buffer<T> m;           // [N, ld_cell] o tanh(c), before the projection
  };

  const bool keep_;      // packed weights; a single step uses every panel once
  const bool in_place_;  // saved planes take the place of the pre-activations they come from
  const int64_t chunk_;  // time steps
  const int64_t x_row_, x_plane_;
  Direction direction_[2];
  Buffer<T> zero_;

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<T>& w = f.weights[used ? d : 0];
    const int64_t panels = ceil_div(H, Gated::kUnits);
    return {Gated(w.w_ih, I, H, used && keep_),
            Gated(w.w_hh, P, H, used && keep_),
            Plain(w.w_hr, H, P, used && keep_),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used ? panels * kLd : 0),
            Buffer<T>(used && !in_place_ ? chunk_ * N * x_row_ : 0),
            Buffer<T>(used ? 2 * N * ld_state : 0),
            Buffer<T>(used && Cell::kState ? N * ld_cell : 0),
            Buffer<T>(used && s.projected ? N * ld_cell : 0)};
  }

 public:
  ForwardPass(const fastrnn::Forward<T>& forward, const Parallel& threads)
      : Base(forward, threads),
        keep_(s.steps > 1),
        in_place_(f.save && Cell::kSaved >= Cell::kGates),
        chunk_(min(s.steps, max(kChunkBytes / (max(1, N) * G * H * int64_t{sizeof(T)}),
                                ceil_div(kRowBlock, max(1, N))))),
        x_row_(in_place_ ? S * H : G * ld_cell),
        x_plane_(in_place_ ? H : ld_cell),
        direction_{make(0), make(1)},
        zero_(kWidth<T, kPlain>) {}

  void operator()() {
    memset(zero_, 0, kWidth<T, kPlain> * sizeof(T));
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
    const int64_t gated = direction_[0].ih.count(), plain = direction_[0].hr.count();
    if (keep_)
      run(parallel, D * (2 * gated + plain), [&](int64_t task) {
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
      for (int64_t n = 0; n < N; ++n) {
        // Both halves: a row of the reverse direction may enter at an odd step.
        memcpy(w.h + n * ld_state, f.h0 + (d * N + n) * P, P * sizeof(T));
        memcpy(w.h + (N + n) * ld_state, f.h0 + (d * N + n) * P, P * sizeof(T));
        if constexpr (Cell::kState)
          memcpy(w.c + n * ld_cell, f.c0 + (d * N + n) * H, H * sizeof(T));
      }
    }
  }

  // Rows of the matrices that a chunk of steps owns.
  Range rows_of(int64_t d, Range steps) const {
    const int64_t first = min(this->time(d, steps.first), this->time(d, steps.last - 1));
    const int64_t last = max(this->time(d, steps.first), this->time(d, steps.last - 1));
    return {s.offset[first], s.offset[last] + s.active[last]};
  }
  T* x_part(int64_t d, int64_t row, Range steps) {
    return in_place_ ? this->gates(d, row)
                     : direction_[d].x_part + (row - rows_of(d, steps).first) * x_row_;
  }

  // x_part = x W_ih^T + b_ih for one thread's share of a chunk's rows.
  void input_product(int64_t task, Range steps) {
    const int64_t d = task % D;
    const Direction& w = direction_[d];
    const Range all = rows_of(d, steps);
    const Range rows = piece(all.count(), task / D, parallel.threads, kTileRows<kGated>);
    const int64_t block = min(kRowBlock, rows.count());
    const Buffer<T> partial(block * kLd), scratch(w.ih.scratch());
    for (int64_t p = 0; p < w.ih.count(); ++p) {
      const T* const panel = w.ih.get(p, scratch);
      for (int64_t i = rows.first; i < rows.last; i += block) {
        T* const out = x_part(d, all.first + i, steps);
        product<T, kGated>(f.x + (all.first + i) * I, I, min(block, rows.last - i), I, panel,
                           w.b_ih + p * kLd, partial,
                           [&](const T* tile, int64_t first, int64_t count) {
                             for_each_lane(p, [&](int u, Lane<T> lane) {
                               for (int64_t r = 0; r < count; ++r)
                                 for (int g = 0; g < G; ++g)
                                   lane.store_to(out + (first + r) * x_row_ + g * x_plane_,
                                                 tile_at(tile, r, g, u));
                             });
                           });
      }
    }
  }

  void time_loop(int64_t d, Range batch, Range steps) {
    Direction& w = direction_[d];
    const Buffer<T> partial(batch.count() * kLd), scratch(max(w.hh.scratch(), w.hr.scratch()));
    for (int64_t step = steps.first; step < steps.last; ++step) {
      const int64_t rows = active(d, step, batch);
      T* const h_prev = w.h + ((step & 1) * N + batch.first) * ld_state;
      T* const h = w.h + ((~step & 1) * N + batch.first) * ld_state;
      const int64_t row = this->row(d, step) + batch.first;
      const Step now{h_prev,
                     h,
                     Cell::kState ? w.c + batch.first * ld_cell : nullptr,
                     s.projected ? w.m + batch.first * ld_cell : nullptr,
                     rows > 0 ? x_part(d, row, steps) : nullptr,
                     d,
                     row};
      for (int64_t p = 0; p < w.hh.count(); ++p)
        product<T, kGated>(h_prev, ld_state, rows, P, w.hh.get(p, scratch), w.b_hh + p * kLd,
                           partial, [&](const T* tile, int64_t first, int64_t count) {
                             cell(now, p, tile, first, count);
                           });
      for (int64_t p = 0; p < w.hr.count(); ++p)
        product<T, kPlain>(now.m, ld_cell, rows, H, w.hr.get(p, scratch), zero_, partial,
                           [&](const T* tile, int64_t first, int64_t count) {
                             project(now, p, tile, first, count);
                           });
      // Rows whose last step this was.
      for (int64_t n = active(d, step + 1, batch); n < rows; ++n) {
        const int64_t to = d * N + batch.first + n;
        memcpy(f.h_n + to * P, h + n * ld_state, P * sizeof(T));
        if constexpr (Cell::kState) memcpy(f.c_n + to * H, now.c + n * ld_cell, H * sizeof(T));
      }
    }
  }

  struct Step {
    const T* h_prev;  // [rows, ld_state]
    T *h, *c, *m;     // h [rows, ld_state], c and m [rows, ld_cell]
    const T* x;       // [rows, x_row_]
    int64_t d, row;
  };

  // The cell's arithmetic on the recurrent products of `count` rows in one panel.
  void cell(const Step& now, int64_t panel, const T* tile, int64_t first, int64_t count) {
    for_each_lane(panel, [&](int u, Lane<T> lane) {
      for (int64_t r = 0; r < count; ++r) {
        const int64_t n = first + r;
        V x[G], u_part[G], saved[S > 0 ? S : 1], c{};
        V h = s.projected ? V{} : load<V>(now.h_prev + n * ld_state + lane.at);
        for (int g = 0; g < G; ++g) {
          x[g] = lane.load_from(now.x + n * x_row_ + g * x_plane_);
          u_part[g] = tile_at(tile, r, g, u);
        }
        if constexpr (Cell::kState) c = load<V>(now.c + n * ld_cell + lane.at);
        Cell::forward(x, u_part, h, c, saved);
        if constexpr (Cell::kState) store<V>(now.c + n * ld_cell + lane.at, c);
        if (f.save) {
          for (int i = 0; i < S; ++i)
            lane.store_to(this->gates(now.d, now.row + n) + i * H, saved[i]);
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
    });
  }

  void project(const Step& now, int64_t panel, const T* tile, int64_t first, int64_t count) {
    for (int v = 0; v < kPlain; ++v) {
      const Lane<T> lane(panel * kWidth<T, kPlain> + v * kLanes<T>, P);
      for (int64_t r = 0; r < count && lane.valid > 0; ++r) {
        const V h = load<V>(tile + r * kWidth<T, kPlain> + v * kLanes<T>);
        store<V>(now.h + (first + r) * ld_state + lane.at, h);
        lane.store_to(f.y + this->at_y(now.d, now.row + first + r), h);
      }
    }
  }

  // Calls body(u, lane) for the registers of units in a panel of gates.
  template <class F>
  FASTRNN_INLINE void for_each_lane(int64_t panel, F&& body) {
    for (int u = 0; u < Base::kUnitRegisters; ++u) {
      const Lane<T> lane(panel * Gated::kUnits + u * kLanes<T>, H);
      if (lane.valid > 0) body(u, lane);
    }
  }
  static V tile_at(const T* tile, int64_t r, int g, int u) {
    return load<V>(tile + r * kLd + (g * Base::kUnitRegisters + u) * kLanes<T>);
  }
};

// ------------------------------------------------------------------------------------ backward

template <class Cell, class T>
class BackwardPass : Layer<Cell, T> {
  using Base = Layer<Cell, T>;
  using typename Base::V;
  using Base::active, Base::blocks, Base::D, Base::f, Base::G, Base::H, Base::I, Base::ld_cell,
      Base::ld_state, Base::N, Base::P, Base::parallel, Base::row, Base::s, Base::S;
  using Plain = Panels<T, kPlain, 1, false>;
  static constexpr int64_t kLd = kWidth<T, kPlain>;

  struct Direction {
    Plain ih, hh, hr;
    Buffer<T> d_x;            // [rows, G H] gradient of the input part of the pre-activations
    Buffer<T> d_u;            // [rows, G H] of the hidden part, where it differs
    Buffer<T> d_y;            // [rows, P] complete gradient of h, with a projection
    Buffer<T> carry_h;        // [N, ld_state] gradient of h_{t-1} that passes W_hh by
    Buffer<T> carry_c;        // [N, ld_cell] gradient of c_{t-1}
    Buffer<int64_t> previous; // [rows] row of the step before, or ~n: initial state of batch row n

    const T* d_hidden() const { return Cell::kSplit ? d_u : d_x; }
  };

  const fastrnn::Backward<T>& b_;
  const bool keep_;
  Direction direction_[2];
  Buffer<T> zero_;  // a tile of zeros

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<T>& w = f.weights[used ? d : 0];
    return {Plain(w.w_ih, G * H, I, used && keep_ && b_.dx),
            Plain(w.w_hh, G * H, P, used && keep_),
            Plain(w.w_hr, P, H, used && keep_),
            Buffer<T>(used ? s.rows * G * H : 0),
            Buffer<T>(used && Cell::kSplit ? s.rows * G * H : 0),
            Buffer<T>(used && s.projected ? s.rows * P : 0),
            Buffer<T>(used ? N * ld_state : 0),
            Buffer<T>(used && Cell::kState ? N * ld_cell : 0),
            Buffer<int64_t>(used ? s.rows : 0)};
  }

 public:
  BackwardPass(const fastrnn::Backward<T>& backward, const Parallel& threads)
      : Base(backward.forward, threads),
        b_(backward),
        keep_(s.steps > 1),
        direction_{make(0), make(1)},
        zero_(kTileRows<kPlain> * kLd) {}

  void operator()() {
    memset(zero_, 0, kTileRows<kPlain> * kLd * sizeof(T));
    prepare();
    run(parallel, D * blocks, [&](int64_t task) {
      const Range batch = this->block(task / D);
      if (batch.count() > 0) time_loop(task % D, batch);
    });
    if (b_.dx) run(parallel, parallel.threads, [&](int64_t task) { input_gradient(task); });
    if (b_.need_weights)
      run(parallel, parallel.threads, [&](int64_t task) { weight_gradients(task); });
  }

 private:
  void prepare() {
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
        copy_or_zero(w.carry_h + n * ld_state, b_.dh_n, (d * N + n) * P, P, ld_state);
        if constexpr (Cell::kState)
          copy_or_zero(w.carry_c + n * ld_cell, b_.dc_n, (d * N + n) * H, H, ld_cell);
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

  void time_loop(int64_t d, Range batch) {
    Direction& w = direction_[d];
    const Buffer<T> partial(batch.count() * kLd), scratch(max(w.hh.scratch(), w.hr.scratch()));
    // `later` rows were active in the step processed before, which is the later one in the
    // direction's own time; they start at row `after`.
    int64_t later = 0, after = 0;
    for (int64_t step = s.steps - 1; step >= -1; --step) {
      const int64_t rows = active(d, step, batch);
      const int64_t row = step < 0 ? 0 : this->row(d, step) + batch.first;
      if (later > 0 && (step >= 0 || b_.dh0))
        for (int64_t p = 0; p < w.hh.count(); ++p)
          product<T, kPlain>(w.d_hidden() + after * G * H, G * H, later, G * H,
                             w.hh.get(p, scratch), zero_, partial,
                             [&](const T* tile, int64_t first, int64_t count) {
                               const int64_t here = max(0, min(count, rows - first));
                               arrive(d, batch, row, p, tile, first, here);
                               initial(d, batch, p, tile + here * kLd, first + here, count - here);
                             });
      for (int64_t first = later; first < rows; first += kTileRows<kPlain>)
        for (int64_t p = 0; p < w.hh.count(); ++p)
          arrive(d, batch, row, p, zero_, first, min(kTileRows<kPlain>, rows - first));
      for (int64_t p = 0; p < w.hr.count(); ++p)
        product<T, kPlain>(w.d_y + row * P, P, rows, P, w.hr.get(p, scratch), zero_, partial,
                           [&](const T* tile, int64_t first, int64_t count) {
                             cell(d, batch, row, p, tile, first, count);
                           });
      if constexpr (Cell::kState)
        if (b_.dc0)
          for (int64_t n = rows; n < later; ++n)
            memcpy(b_.dc0 + (d * N + batch.first + n) * H,
                   w.carry_c + (batch.first + n) * ld_cell, H * sizeof(T));
      later = rows;
      after = row;
    }
  }

  // tile holds, for `count` rows in one panel of columns of h, what reaches h_t through W_hh.
  void arrive(int64_t d, Range batch, int64_t row, int64_t panel, const T* tile, int64_t first,
              int64_t count) {
    if (!s.projected) return cell(d, batch, row, panel, tile, first, count);
    for (int v = 0; v < kPlain; ++v) {
      const Lane<T> lane(panel * kLd + v * kLanes<T>, P);
      for (int64_t r = 0; r < count && lane.valid > 0; ++r)
        lane.store_to(direction_[d].d_y + (row + first + r) * P,
                      complete(d, batch, row, lane, tile + r * kLd + v * kLanes<T>, first + r));
    }
  }

  // Gradient of h_t: through W_hh, past it, and from y.
  V complete(int64_t d, Range batch, int64_t row, Lane<T> lane, const T* tile, int64_t n) {
    T* const carry = direction_[d].carry_h + (batch.first + n) * ld_state + lane.at;
    V dh = load<V>(tile) + load<V>(carry);
    if (b_.dy) dh += lane.load_from(b_.dy + this->at_y(d, row + n));
    store<V>(carry, V{});
    return dh;
  }

  void initial(int64_t d, Range batch, int64_t panel, const T* tile, int64_t first,
               int64_t count) {
    for (int v = 0; v < kPlain && b_.dh0; ++v) {
      const Lane<T> lane(panel * kLd + v * kLanes<T>, P);
      for (int64_t r = 0; r < count && lane.valid > 0; ++r) {
        const int64_t n = batch.first + first + r;
        lane.store_to(b_.dh0 + (d * N + n) * P,
                      load<V>(tile + r * kLd + v * kLanes<T>) +
                          load<V>(direction_[d].carry_h + n * ld_state + lane.at));
      }
    }
  }

  // The cell's derivatives. With a projection tile is the gradient of o tanh(c), complete.
  void cell(int64_t d, Range batch, int64_t row, int64_t panel, const T* tile, int64_t first,
            int64_t count) {
    Direction& w = direction_[d];
    for (int v = 0; v < kPlain; ++v) {
      const Lane<T> lane(panel * kLd + v * kLanes<T>, H);
      for (int64_t r = 0; r < count && lane.valid > 0; ++r) {
        const int64_t n = batch.first + first + r, at = row + first + r;
        const T* const from = tile + r * kLd + v * kLanes<T>;
        V saved[S > 0 ? S : 1], dx[G], du[G], h_prev{}, h{}, c_prev{}, c{}, dc{};
        for (int i = 0; i < S; ++i) saved[i] = lane.load_from(this->gates(d, at) + i * H);
        if constexpr (Cell::kSplit) h_prev = lane.load_from(previous_h(d, at));
        if constexpr (S == 0) h = lane.load_from(f.y + this->at_y(d, at));
        if constexpr (Cell::kState) {
          c_prev = lane.load_from(previous_c(d, at));
          c = lane.load_from(this->cells(d, at));
          dc = load<V>(w.carry_c + n * ld_cell + lane.at);
        }
        const V dh = s.projected ? load<V>(from) : complete(d, batch, row, lane, from, first + r);
        const V past = Cell::backward(saved, h_prev, h, c_prev, c, dh, dc, dx, du);
        if constexpr (Cell::kSplit) store<V>(w.carry_h + n * ld_state + lane.at, past);
        if constexpr (Cell::kState) store<V>(w.carry_c + n * ld_cell + lane.at, dc);
        for (int g = 0; g < G; ++g) {
          lane.store_to(w.d_x + (at * G + g) * H, dx[g]);
          if constexpr (Cell::kSplit) lane.store_to(w.d_u + (at * G + g) * H, du[g]);
        }
      }
    }
  }

  // dx = sum over directions of d_x W_ih, for one thread's share of the rows.
  void input_gradient(int64_t task) {
    const Range rows = piece(s.rows, task, parallel.threads, kTileRows<kPlain>);
    const Buffer<T> partial(min(kRowBlock, rows.count()) * kLd),
        scratch(direction_[0].ih.scratch());
    for (int64_t i = rows.first; i < rows.last; i += kRowBlock)
      for (int64_t d = 0; d < D; ++d)
        for (int64_t p = 0; p < direction_[d].ih.count(); ++p)
          product<T, kPlain>(direction_[d].d_x + i * G * H, G * H,
                             min(kRowBlock, rows.last - i), G * H,
                             direction_[d].ih.get(p, scratch), zero_, partial,
                             [&](const T* tile, int64_t first, int64_t count) {
                               for (int v = 0; v < kPlain; ++v) {
                                 const Lane<T> lane(p * kLd + v * kLanes<T>, I);
                                 for (int64_t r = 0; r < count && lane.valid > 0; ++r) {
                                   T* const out = b_.dx + (i + first + r) * I;
                                   V sum = load<V>(tile + r * kLd + v * kLanes<T>);
                                   if (d > 0) sum += lane.load_from(out);
                                   lane.store_to(out, sum);
                                 }
                               }
                             });
  }

  // One thread's share of the rows of every weight's gradient.
  void weight_gradients(int64_t task) {
    const Range gates = piece(G * H, task, parallel.threads, kTileRows<kPlain>);
    const Range states = piece(P, task, parallel.threads, kTileRows<kPlain>);
    for (int64_t d = 0; d < D; ++d) {
      const Direction& w = direction_[d];
      const auto& out = b_.dweights[d];
      const auto d_x = [&](int64_t k) { return w.d_x + k * G * H; };
      const auto d_u = [&](int64_t k) { return w.d_hidden() + k * G * H; };
      outer(s.rows, gates, I, d_x, [&](int64_t k) { return f.x + k * I; }, out.w_ih);
      outer(s.rows, gates, P, d_u, [&](int64_t k) { return previous_h(d, k); }, out.w_hh);
      if (s.projected)
        outer(s.rows, states, H, [&](int64_t k) { return w.d_y + k * P; },
              [&](int64_t k) { return this->hidden(d, k); }, out.w_hr);
      if (out.b_ih) {
        column_sums(s.rows, gates, d_x, out.b_ih);
        column_sums(s.rows, gates, d_u, out.b_hh);
      }
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
