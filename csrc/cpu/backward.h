// A layer from the last step to the first.
//
// For one chunk of steps after the other: each step the cell's derivatives along the rows, then the
// product that carries them to the step before; after the chunk one product each, over all its
// rows, for the gradients of its inputs and of every weight.
#pragma once

#include "cpu/outer.h"
#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

template <class Cell, class Stored>
class BackwardPass : Layer<Cell, Stored> {
  using Base = Layer<Cell, Stored>;
  using Base::active, Base::D, Base::f, Base::G, Base::H, Base::I, Base::ld_cell, Base::ld_gates,
      Base::ld_state, Base::N, Base::P, Base::parallel, Base::row, Base::rows_of, Base::s, Base::S,
      Base::split, Base::place, Base::entry;
  using typename Base::O;
  using typename Base::T;
  using typename Base::V;
  using Plain = Panels<Stored, O, kWide, 1, false>;

  struct Direction {
    Plain ih, hh, hr;
    // Operands; a row goes on with zeros up to a multiple of kGrain.
    Buffer<O> d_x;             // [rows of a chunk, ld_gates] gradient of x, the input part
    Buffer<O> d_u;             // [rows of a chunk, ld_gates] gradient of u, where it differs
    Buffer<O> d_y;             // [rows of a chunk, ld_y] complete gradient of h, with a projection
    Buffer<T> d_m;             // [N, ld_cell] gradient of o tanh(c), with a projection
    Buffer<T> d_h;             // [N, ld_state] gradient of h_t from later steps
    Buffer<T> d_c;             // [N, ld_cell] gradient of c_t from later steps
    Buffer<T> sums;            // gradients of the weights, where memory holds another type
    Buffer<int64_t> previous;  // [rows] row of the matrices one step before; ~n for the first step
                               // of entry n; kNone where a reset made the state before zero

    O* d_hidden() const { return Cell::kSplit ? d_u : d_x; }
  };

  static constexpr int64_t kNone = INT64_MIN;
  static constexpr int64_t kLeftBytes = 5 << 18;  // of d_x that a second-level cache keeps
  static constexpr bool kRounds = !std::is_same_v<Stored, T>;

  const fastrnn::Backward<Stored>& b_;
  const T grad_clip_;
  const bool keep_;      // packed weights; a step of a few rows reads them as they lie
  const int64_t ld_y_;   // of d_y
  const int64_t chunk_;  // time steps
  Direction direction_[2];
  fastrnn::cpu::Team teams_[2];
  Buffer<T> zero_;
  Buffer<Stored> zero_state_;

  // With what `outer` reads behind its end.
  static Buffer<O> left_matrix(int64_t count) {
    return Buffer<O>(count > 0 ? count + kTileRows<O, kNarrow> : 0);
  }

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<const Stored>& w = f.weights[used ? d : 0];
    const int64_t rows = used ? chunk_ * N : 0;
    const int64_t weights = G * H * (I + P + 2) + (s.projected ? P * H : 0);
    return {Plain(w.w_ih, G * H, I, used && keep_ && b_.dx),
            Plain(w.w_hh, G * H, P, used && keep_),
            Plain(w.w_hr, P, H, used && keep_),
            left_matrix(rows * ld_gates),
            left_matrix(Cell::kSplit ? rows * ld_gates : 0),
            left_matrix(s.projected ? rows * ld_y_ : 0),
            Buffer<T>(used && s.projected ? N * ld_cell : 0),
            Buffer<T>(used ? N * ld_state : 0),
            Buffer<T>(used && Cell::kState ? N * ld_cell : 0),
            Buffer<T>(used && kRounds && b_.need_weights ? weights : 0),
            Buffer<int64_t>(used ? this->total : 0)};
  }

 public:
  BackwardPass(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward.forward, threads),
        b_(backward),
        grad_clip_(static_cast<T>(backward.grad_clip)),
        keep_(s.steps > 1 || N > kTileRows<O, kWide>),
        ld_y_(round_up(P, kGrain<O>)),
        chunk_(this->chunk(N, 0, kOuterDepth)),
        direction_{make(0), make(1)},
        teams_{{split.units, split.slices}, {split.units, split.slices}},
        zero_(kWidth<T, kWide>),
        zero_state_(max(ld_state, ld_cell)) {}

  void operator()() {
    prepare();
    if (s.steps == 0 && b_.need_weights) weight_gradients(0, {0, 0}, /*add=*/false, 1);
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
        this->share(parallel.threads, [&](int64_t task) { input_gradient(task, d, steps); });
      if (b_.need_weights)
        this->share(parallel.threads, [&](int64_t task) {
          weight_gradients(task, steps, last < s.steps, parallel.threads);
        });
    }
    for (int64_t i = 0; i < D * N; ++i) {
      const Direction& w = direction_[i / N];
      const int64_t n = i % N, to = i / N * N + entry(n);
      if (b_.dh0) copy(b_.dh0 + to * P, w.d_h + n * ld_state, P);
      if constexpr (Cell::kState)
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
        if constexpr (Cell::kState)
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

  const Stored* previous_h(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0 ? f.y + this->at_y(d, at) : at == kNone ? zero_state_ : f.h0 + (d * N + ~at) * P;
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
      if (s.projected) projection(d, batch, step, steps, scratch);
      cells(d, batch, step, steps, {0, H});
      if (step > 0 || b_.dh0) recurrent_product(d, batch, step, steps, {0, w.hh.count()}, scratch);
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
        if (step >= 0 || b_.dh0) recurrent_product(d, all, step + 1, steps, panels, scratch);
        limit(d, all, step + 1, units, units);
      }
      if (step >= steps.first) cells(d, all, step, steps, units);
    });
  }

  // d_y and the gradient of o tanh(c), with a projection.
  void projection(int64_t d, Range batch, int64_t step, Range steps, O* scratch) {
    Direction& w = direction_[d];
    const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
    O* const d_y = w.d_y + (first - rows_of(d, steps).first) * ld_y_;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t p = 0; p < P; p += kLanes<T>) {
        const Lane<T> lane(p, P);
        lane.store_to(d_y + n * ld_y_,
                      take(w.d_h + (batch.first + n) * ld_state, d, place(first + n), lane));
      }
    for (int64_t p = 0; p < w.hr.count(); ++p)
      multiply<O, kWide>(d_y, ld_y_, rows, P, w.hr.get(p, scratch), w.hr.far(p + 1), zero_, 0,
                         w.d_m + batch.first * ld_cell + p * kWidth<T, kWide>, ld_cell);
  }

  void cells(int64_t d, Range batch, int64_t step, Range steps, Range units) {
    const int64_t first = row(d, step) + batch.first, to = first - rows_of(d, steps).first;
    for (int64_t n = 0; n < active(d, step, batch); ++n)
      cell(d, batch.first + n, first + n, to + n, units);
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
        if constexpr (Cell::kState) memset(d_c + units.first, 0, units.count() * sizeof(T));
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
  // of time, `to` of the chunk's matrices.
  void cell(int64_t d, int64_t n, int64_t row, int64_t to, Range units) {
    Direction& w = direction_[d];
    const int64_t own = place(row);
    T* const d_h = w.d_h + n * ld_state;
    for (int64_t at = units.first; at < units.last; at += kLanes<T>) {
      const Lane<T> lane(at, H);
      V saved[S > 0 ? S : 1], dx[G], du[G], h_prev{}, h{}, c_prev{}, c{}, dc{};
      for (int i = 0; i < S; ++i) saved[i] = lane.load_from(this->gates(d, own) + i * H);
      if constexpr (Cell::kSplit) h_prev = lane.load_from(previous_h(d, row));
      if constexpr (S == 0) h = lane.load_from(f.y + this->at_y(d, own));
      if constexpr (Cell::kState) {
        c_prev = lane.load_from(previous_c(d, row));
        c = lane.load_from(f.cells + this->at_cell(d, own));
        dc = load<V>(w.d_c + n * ld_cell + at);
        if (b_.dcells) dc += lane.load_from(b_.dcells + this->at_cell(d, own));
      }
      const V dh = s.projected ? load<V>(w.d_m + n * ld_cell + at) : take(d_h, d, own, lane);
      const V past = Cell::backward(saved, h_prev, h, c_prev, c, dh, dc, dx, du);
      if constexpr (Cell::kSplit) store<V>(d_h + at, past);
      if constexpr (Cell::kState) store<V>(w.d_c + n * ld_cell + at, dc);
      for (int g = 0; g < G; ++g) {
        lane.store_to(w.d_x + to * ld_gates + g * H, dx[g]);
        if constexpr (Cell::kSplit) lane.store_to(w.d_u + to * ld_gates + g * H, du[g]);
      }
    }
  }

  // dx (+)= d_x W_ih for one thread's share of a chunk's rows. The other direction meets the rows
  // at the other end of time first: where it has been, its part is there already, rounded if it is
  // Stored as another type.
  void input_gradient(int64_t task, int64_t d, Range steps) {
    const Range all = rows_of(d, steps);
    const Range rows = piece(all.count(), task, parallel.threads, kTileRows<O, kWide>);
    const auto visited = [&](int64_t row) {
      if (D == 1) return false;
      // What direction 0 has done by now includes this chunk, what direction 1 has done does not.
      const Range other = d == 1 ? rows_of(0, {steps.first, s.steps})
                                 : rows_of(1, {min(steps.last, s.steps - 1), s.steps});
      return (d == 1 || steps.last < s.steps) && row >= other.first && row < other.last;
    };
    const Direction& w = direction_[d];
    int64_t block = kRowBlock<O>;  // rows of d_x that stay there for all panels
    while (block > kRowBlock<O> / 4 && block * ld_gates * int64_t{sizeof(O)} > kLeftBytes)
      block /= 2;
    const Buffer<T> partial(min(block, rows.count()) * kWidth<T, kWide>);
    const Buffer<O> scratch(w.ih.scratch());
    for (int64_t i = rows.first; i < rows.last; i += block)
      for (int64_t p = 0; p < w.ih.count(); ++p) {
        const int64_t count = min(block, rows.last - i);
        multiply<O, kWide>(w.d_x + i * ld_gates, ld_gates, count, G * H, w.ih.get(p, scratch),
                           w.ih.far(p + 1), zero_, 0, partial, kWidth<T, kWide>);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = all.first + i + r, to = place(row);
          const bool add = visited(row);
          for (int v = 0; v < kWide; ++v) {
            const Lane<T> lane(p * kWidth<T, kWide> + v * kLanes<T>, I);
            if (lane.valid == 0) break;
            V sum = load<V>(partial + r * kWidth<T, kWide> + v * kLanes<T>);
            if (add) sum += lane.load_from(b_.dx + to * I);
            lane.store_to(b_.dx + to * I, sum);
          }
        }
      }
  }

  // A weight's gradient where sums over more than one chunk of rows are kept: its own memory, or,
  // if that is of another type, what `next` points at, which then moves on.
  static T* sums(Stored* gradient, int64_t count, T*& next) {
    if constexpr (kRounds)
      return gradient ? std::exchange(next, next + count) : nullptr;
    else
      return gradient;
  }

  // One of several shares of the rows of every weight's gradient, summed over a chunk's rows.
  void weight_gradients(int64_t task, Range steps, bool add, int64_t shares) {
    const Range gates = piece(G * H, task, shares, kTileRows<O, kNarrow>);
    const Range states = piece(P, task, shares, kTileRows<O, kNarrow>);
    for (int64_t d = 0; d < D; ++d) {
      const Direction& w = direction_[d];
      const auto& out = b_.dweights[d];
      const auto [first, last] = rows_of(d, steps);
      const int64_t rows = last - first, from = first;
      const auto d_x = [&](int64_t k) { return w.d_x + k * ld_gates; };
      const auto d_u = [&](int64_t k) { return w.d_hidden() + k * ld_gates; };
      const auto x = [&](int64_t k) { return f.x + place(from + k) * I; };
      const auto h = [&](int64_t k) { return previous_h(d, from + k); };
      const auto m = [&](int64_t k) { return f.hidden + this->at_cell(d, place(from + k)); };
      T* next = w.sums;
      const auto product = [&](Range range, int64_t m, int64_t n, const O* left, int64_t ld,
                               auto&& right, Stored* to) {
        T* const sum = sums(to, m * n, next);
        outer<O>(rows, range, n, left, ld, right, sum, add);
        finish(steps, to, sum, {range.first * n, range.last * n});
      };
      const auto column_sum = [&](auto&& left, Stored* to) {
        T* const sum = sums(to, G * H, next);
        column_sums(rows, gates, left, sum, add);
        finish(steps, to, sum, gates);
      };
      product(gates, G * H, I, w.d_x, ld_gates, x, out.w_ih);
      product(gates, G * H, P, w.d_hidden(), ld_gates, h, out.w_hh);
      if (out.b_ih) {
        column_sum(d_x, out.b_ih);
        column_sum(d_u, out.b_hh);
      }
      if (s.projected) product(states, P, H, w.d_y, ld_y_, m, out.w_hr);
    }
  }

  // After the last chunk sums become gradients.
  static void finish(Range steps, Stored* gradient, const T* sum, Range range) {
    if constexpr (kRounds)
      if (steps.first == 0) copy(gradient + range.first, sum + range.first, range.count());
  }
};

}  // namespace FASTRNN_NAMESPACE
