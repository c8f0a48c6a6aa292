// A step of a layer whose cell is a program (program.h), forward and backward.
// Forward, the recurrent product of some units is made for all rows of a step, all gates, and then
// their code runs. Where units of a row meet, in a sum or in a second product, it waits for the
// whole row. Backward, the code runs for all units, and the products that follow are those of every
// cell.
// Ranges are given by reference. GCC 12 stores those given by value number by number, and loads
// both at once, which waits until they are in the cache: 5 % of a step of one row and 16 units.
#pragma once

#include "cpu/backward_step.h"
#include "cpu/forward_state.h"
#include "cpu/program_planes.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN int64_t common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

template <class Stored>
struct ProgramStep : ForwardState<Schedule<Stored>, Stored, kWide, 0> {
  using Base = ForwardState<Schedule<Stored>, Stored, kWide, 0>;
  using Gated = typename Base::Gated;
  using Base::direction_, Base::f, Base::H, Base::kind, Base::kLd, Base::kRounds, Base::ld_cell,
      Base::ld_state, Base::N, Base::P, Base::place, Base::s, Base::x_part;
  using typename Base::O;
  using typename Base::Step;
  using typename Base::T;
  using typename Base::V;
  using L = Lies<T>;
  static constexpr int64_t kTileBytes = 32 * 1024;  // of sums that wait for their code

  const fastrnn::Program& program_;
  const int64_t cut_;   // panels that hold whole units, all gates
  const int64_t most_;  // panels whose sums wait together
  const Range units_;   // all registers of units

  ProgramStep(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads, kind_of(*forward.program)),
        program_(*forward.program),
        cut_(max(1, kind.gates_u / max(1, common_divisor(kind.gates_u, kWide)))),
        most_(program_.row_sums || kind.gates_u == 0 || kind.gates_w > 0
                  ? direction_[0].hh.count()
                  : round_up(max(1, kTileBytes /
                                        (max(1, N / this->split.rows) * kLd * int64_t{sizeof(T)})),
                             cut_)),
        units_{0, ceil_div(H, kLanes<T>)} {}

  // Panels between which a step can be cut.
  int64_t cut() const { return cut_; }

  struct Worker {
    Interpreter<T> interpreter, first;  // first: of the code before a second product
    Parameters<Stored> parameters[2];
    Buffer<T> tile;      // [rows, the sums of some panels]
    Buffer<T> tile_w;    // [rows, the sums of a second product]
    Buffer<O> v;         // [N, ld_state] its operand; zero beyond H
    Buffer<T> fresh;     // [N, ld_cell] h before the projection
    Buffer<void*> rows;  // of the saved planes
    const bool still;    // whether no parameter has numbers for each row
    // What was run in one block, for each of the two places of h.
    struct {
      const T* h = nullptr;
      int64_t rows, first, count;
    } seen[2];

    explicit Worker(const ProgramStep& step)
        : interpreter(step.f.save ? step.program_.forward : step.program_.inference,
                      forward_inputs(step.program_.info), step.N, step.H, step.program_.row_sums),
          first(step.program_.first_forward, forward_inputs(step.program_.info) - step.kind.gates_w,
                step.N, step.H, step.program_.row_sums),
          parameters{{step.f, 0, step.ld_cell}, {step.f, step.D - 1, step.ld_cell}},
          tile(step.N * min(step.most_, step.direction_[0].hh.count()) * kLd),
          tile_w(step.N * step.direction_[0].hw.count() * kLd),
          v(step.kind.gates_w > 0 ? step.N * step.ld_state : 0),
          fresh(step.s.projected ? step.N * step.ld_cell : 0),
          rows(step.f.save && step.s.place ? step.kind.saved * step.N : 0),
          still(all_units(step.f)) {
      if (v) memset(v, 0, step.N * step.ld_state * sizeof(O));
    }

    static bool all_units(const fastrnn::Forward<Stored>& f) {
      bool all = true;
      for (int64_t i = 0; i < f.program->info.params; ++i)
        all &= f.forms[i] == fastrnn::Form::kUnit;
      return all;
    }
  };

  // u = W_hh h_{t-1} + bias for the units of some panels, and their cells.
  void recurrent_product(Worker& worker, const Step& now, int64_t step, const Range& panels) {
    if (now.rows == 0) return;
    const auto& w = direction_[now.d];
    if (kind.gates_w > 0) return two_products(worker, now, step, panels);
    if (kind.gates_u == 0) return cells(worker, now, panels, units_);
    const int64_t all = w.hh.count();
    if (panels.count() == all && all <= most_) {  // without a division, which a short step notices
      product(w.hh, w.b_hh, now.left, worker.tile, now, step, panels);
      return cells(worker, now, panels, units_);
    }
    const Range blocks{0, ceil_div(panels.count(), most_)};
    this->each_panel(step, blocks, [&](int64_t block, int64_t) {
      const int64_t first = panels.first + block * most_;
      const Range some{first, min(panels.last, first + most_)};
      product(w.hh, w.b_hh, now.left, worker.tile, now, step, some);
      cells(worker, now, some,
            {some.first * kWide / kind.gates_u,
             some.last == all ? units_.last : some.last * kWide / kind.gates_u});
    });
  }

 private:
  // tile = W left + bias for some panels of W.
  void product(const Gated& weight, const T* bias, const O* first_left, T* tile, const Step& now,
               int64_t step, const Range& panels) {
    const int64_t ld = panels.count() * kLd, ld_init = kind.split ? 0 : this->ld_x();
    const int64_t depth = s.heads > 1 ? P / s.heads : P;
    this->each_panel(step, panels, [&](int64_t p, int64_t next) {
      const T* const init = kind.split ? bias + p * kLd : x_part(now.d, p, now.chunk_row);
      T* const out = tile + (p - panels.first) * kLd;
      const O* left = first_left;
      if (s.heads > 1) {  // the first unit of a panel is of the same head as the others
        const int64_t unit = p * kWide / kind.gates_u * kLanes<T>;
        left += unit / depth * depth;
      }
      const Panel<O> panel = weight.get(p);
      if (now.rows == 1)
        micro_of<O, kWide>(1, panel)(left, ld_state, panel, depth, init, ld_init, out, ld, {});
      else
        multiply<O, kWide>(left, ld_state, now.rows, depth, panel, weight.far(next), init, ld_init,
                           out, ld);
    });
  }

  // The code for some registers of units, whose sums are those of some panels.
  void cells(Worker& worker, const Step& now, const Range& panels, const Range& units) {
    constexpr int64_t kLane = kLanes<T>;
    const int64_t own = kind.own;
    T* const h = s.projected ? worker.fresh : now.h;
    const int64_t ld_h = s.projected ? ld_cell : ld_state;
    const Range all{units.first * kLane, min(H, units.last * kLane)};
    T* const x = kind.split ? x_part(now.d, 0, now.chunk_row) : nullptr;
    for (int64_t k = 0; k < 2; ++k) {
      const auto& seen = worker.seen[k];
      if (seen.h != now.h || seen.rows != now.rows || seen.first != units.first ||
          seen.count != units.count())
        continue;
      for (int64_t g = 0; g < kind.gates_x && kind.split; ++g)
        worker.interpreter.kept(k)[g].at = x + (g + units.first * kind.gates_x) * kLane;
      worker.interpreter.run_kept(k, now.rows, units);
      return results(now, h, ld_h, all);
    }
    L* lies = given(worker, worker.interpreter.lies(), now, panels, units, kind.gates_w);
    *lies++ = padded(h, ld_h);
    for (int64_t k = 0; k < own; ++k) *lies++ = padded(now.c + k * N * ld_cell, ld_cell);
    for (int64_t i = program_.saved_first; i < kind.saved; ++i) *lies++ = saved(worker, now, i);
    const bool all_padded = !f.save && worker.still;
    worker.interpreter.run(now.rows, units, all_padded);
    results(now, h, ld_h, all);
    // Then nothing but h and x is elsewhere in the next step.
    if (all_padded && worker.interpreter.at_once(now.rows, units)) {
      const int64_t k = now.h < now.h_prev ? 0 : 1;
      worker.seen[k] = {now.h, now.rows, units.first, units.count()};
      worker.interpreter.keep(k);
    }
  }

  // v of the first product, the product of v, and the cells.
  void two_products(Worker& worker, const Step& now, int64_t step, const Range& panels) {
    const auto& w = direction_[now.d];
    if (kind.gates_u > 0) product(w.hh, w.b_hh, now.left, worker.tile, now, step, panels);
    L* lies = given(worker, worker.first.lies(), now, panels, units_, 0);
    constexpr auto kOperand = std::is_same_v<O, T> ? L::kPadded : L::kNarrow;
    *lies++ = {worker.v, ld_state, kLanes<T>, kOperand, nullptr};
    for (int64_t i = 0; i < program_.saved_first; ++i) *lies++ = saved(worker, now, i);
    worker.first.run(now.rows, units_, false);
    product(w.hw, w.b_hw, worker.v, worker.tile_w, now, step, {0, w.hw.count()});
    cells(worker, now, panels, units_);
  }

  static L padded(T* first, int64_t row, int64_t gates = 1) {
    return {first, row, gates * kLanes<T>, L::kPadded, nullptr};
  }

  // What a code for some units is given, with some gates of a second product. Returns the end.
  L* given(Worker& worker, L* lies, const Step& now, const Range& panels, const Range& units,
           int64_t gates_w) {
    constexpr int64_t kLane = kLanes<T>;
    const int64_t X = kind.gates_x, U = kind.gates_u, W = gates_w;
    T* const x = kind.split ? x_part(now.d, 0, now.chunk_row) : nullptr;
    for (int64_t g = 0; g < X && kind.split; ++g) *lies++ = padded(x + g * kLane, this->ld_x(), X);
    // Register 0 would be before the tile's begin where that is another one.
    T* const u = worker.tile - units.first * U * kLane;
    for (int64_t g = 0; g < U; ++g) *lies++ = padded(u + g * kLane, panels.count() * kLd, U);
    const int64_t ld_w = direction_[0].hw.count() * kLd;
    for (int64_t g = 0; g < W; ++g) *lies++ = padded(worker.tile_w + g * kLane, ld_w, W);
    *lies++ = padded(now.h_prev, ld_state);
    for (int64_t k = 0; k < kind.own; ++k) *lies++ = padded(now.c + k * N * ld_cell, ld_cell);
    worker.parameters[now.d].place(now.row, now.rows, lies);
    return lies + program_.info.params;
  }

  L saved(Worker& worker, const Step& now, int64_t i) const {
    if (!f.save) return {nullptr, 0, 0, L::kAbsent, nullptr};
    constexpr auto kind_of_memory = std::is_same_v<Stored, T> ? L::kExact : L::kNarrow;
    void** const begin = s.place ? worker.rows + i * N : nullptr;
    for (int64_t n = 0; n < now.rows && s.place; ++n)
      begin[n] = this->gates(now.d, place(now.row + n)) + i * H;
    return {this->gates(now.d, now.row) + i * H, kind.saved * H, kLanes<T>, kind_of_memory,
            s.place ? begin : nullptr};
  }

  // A row's numbers of some units. `copy` would call a function for each row.
  template <class To>
  static void move(To* to, const T* from, const Range& units) {
    for (int64_t at = units.first; at < units.last; at += kLanes<T>)
      Lane<T>(at, units.last).store_to(to, load<V>(from + at));
  }

  // Where the states of some units go besides.
  void results(const Step& now, const T* h, int64_t ld_h, const Range& units) const {
    const int64_t output = program_.output;
    for (int64_t n = 0; n < now.rows; ++n) {
      const int64_t to = place(now.row + n);
      const T* const own = h + n * ld_h;
      const auto c = [&](int64_t k) { return now.c + (k * N + n) * ld_cell; };
      for (int64_t k = 0; k < kind.own && f.save; ++k)
        move(f.cells + this->at_cell(now.d, to) + k * H, c(k), units);
      if (f.save && f.hidden) move(f.hidden + this->at_hidden(now.d, to), own, units);
      if (s.projected) {
        move(now.m + n * ld_cell, own, units);
        continue;
      }
      if constexpr (kRounds) move(now.next_left + n * ld_state, own, units);
      move(f.y + this->at_y(now.d, to), output ? c(output - 1) : own, units);
    }
  }
};

template <class Stored>
struct ProgramDerivative : Gradients<Stored> {
  using Base = Gradients<Stored>;
  using Base::active, Base::b_, Base::direction_, Base::f, Base::GU, Base::GW, Base::GX, Base::H,
      Base::kind, Base::ld_cell, Base::ld_gates, Base::ld_state, Base::N, Base::params_,
      Base::place, Base::previous_c, Base::previous_h, Base::row, Base::rows_of, Base::s;
  using typename Base::O, typename Base::T, typename Base::V;
  using L = Lies<T>;
  static constexpr int64_t kLane = kLanes<T>;
  static constexpr auto kMemory = std::is_same_v<Stored, T> ? L::kExact : L::kNarrow;
  static constexpr auto kOperand = std::is_same_v<O, T> ? L::kExact : L::kNarrow;

  const fastrnn::Program& program_;

  ProgramDerivative(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward, threads, kind_of(*backward.forward.program)),
        program_(*backward.forward.program) {}

  struct Worker {
    Interpreter<T> interpreter, first;  // first: of the code before a second product
    Parameters<Stored> parameters[2];
    Buffer<void*> rows;  // [planes in memory, N]
    Buffer<O> scratch;   // for a panel
    explicit Worker(const ProgramDerivative& step)
        : interpreter(step.program_.backward, backward_inputs(step.program_.info) + (step.GW > 0),
                      step.N, step.H, step.program_.row_sums),
          first(step.program_.first_backward, backward_inputs(step.program_.info), step.N, step.H,
                step.program_.row_sums),
          parameters{{step.f, 0, step.ld_cell}, {step.f, step.D - 1, step.ld_cell}},
          rows((step.kind.saved + 2 + 2 * step.kind.own) * step.N),
          scratch(step.direction_[0].hw.scratch()) {}
  };

  // The derivatives of a step, and whether they are all zero.
  bool cells(Worker& worker, int64_t d, Range batch, int64_t step, Range steps, Range units) {
    const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
    const int64_t to = first - rows_of(d, steps).first;
    if (rows == 0 || units.count() == 0) return true;
    gather(d, batch.first, first, rows, units);
    auto& w = direction_[d];
    const bool* const reads = program_.backward.reads;
    const bool* const reads_first = GW > 0 ? program_.first_backward.reads : nullptr;
    L* lies = worker.interpreter.lies();
    void** begin = worker.rows;
    const auto memory = [&](auto&& at) {  // at(n): where row n begins
      const int64_t plane = lies - worker.interpreter.lies();
      const bool read = reads[plane] || (reads_first && reads_first[plane]);
      for (int64_t n = 0; n < rows && read; ++n) begin[n] = const_cast<Stored*>(at(n));
      *lies++ = read ? lie(begin, rows) : L{};
      begin += N;
    };
    const auto tile = [&](T* at, int64_t ld) { *lies++ = {at, ld, kLane, L::kPadded, nullptr}; };
    const auto kept = [&](int64_t n) { return place(first + n); };
    for (int64_t i = 0; i < kind.saved; ++i)
      memory([&](int64_t n) { return this->gates(d, kept(n)) + i * H; });
    memory([&](int64_t n) { return previous_h(d, first + n); });
    for (int64_t k = 0; k < kind.own; ++k)
      memory([&](int64_t n) { return previous_c(d, first + n) + k * H; });
    memory([&](int64_t n) {
      return s.projected ? f.hidden + this->at_hidden(d, kept(n)) : this->h_of(d, kept(n));
    });
    for (int64_t k = 0; k < kind.own; ++k)
      memory([&](int64_t n) { return f.cells + this->at_cell(d, kept(n)) + k * H; });
    worker.parameters[d].place(first, rows, lies);
    lies += params_;
    T* const d_h = s.projected ? w.d_m + batch.first * ld_cell : w.d_h + batch.first * ld_state;
    const int64_t ld_h = s.projected ? ld_cell : ld_state;
    const auto states = [&] {
      tile(d_h, ld_h);
      for (int64_t k = 0; k < kind.own; ++k) tile(w.d_c + (k * N + batch.first) * ld_cell, ld_cell);
    };
    states();
    const auto gates = [&](O* at, int64_t count) {
      for (int64_t g = 0; g < count; ++g)
        *lies++ = {at + to * ld_gates + g * H, ld_gates, kLane, kOperand, nullptr};
    };
    const Range registers{units.first / kLane, ceil_div(units.last, kLane)};
    if (GW > 0) {  // their gradients, and then that of v
      L* const begin_of_first = worker.first.lies();
      const int64_t count = lies - worker.interpreter.lies();
      memcpy(begin_of_first, worker.interpreter.lies(), count * sizeof(L));
      L* const end = std::exchange(lies, begin_of_first + count);
      gates(w.d_w, kind.gates_w);
      worker.first.run(rows, registers, false);
      second_product(w, worker.scratch, batch.first, rows, to);
      lies = end;
      tile(w.d_v + batch.first * ld_state, ld_state);
    }
    gates(w.d_x, kind.gates_x);
    if (kind.split) gates(w.d_u, kind.gates_u);
    states();
    for (int i = 0; i < params_; ++i) tile(w.d_p + (to * params_ + i) * ld_cell, params_ * ld_cell);
    worker.interpreter.run(rows, registers, false);
    return !any(d, to, rows, units);
  }

 private:
  // d_v = d_w W_w for the rows of a step.
  void second_product(typename Base::Direction& w, O* scratch, int64_t n, int64_t rows,
                      int64_t to) {
    for (int64_t p = 0; p < w.hw.count(); ++p)
      multiply<O, kWide>(w.d_w + to * ld_gates, ld_gates, rows, GW, w.hw.get(p, scratch),
                         w.hw.far(p + 1), this->zero_, 0,
                         w.d_v + n * ld_state + p * kWidth<T, kWide>, ld_state);
  }

  // Rows that begin at those places, which mostly are equally far apart.
  static L lie(void* const* begin, int64_t rows) {
    auto* const first = static_cast<Stored*>(begin[0]);
    const int64_t ld = rows > 1 ? static_cast<Stored*>(begin[1]) - first : 0;
    bool even = true;
    for (int64_t n = 2; n < rows; ++n)
      even &= static_cast<Stored*>(begin[n]) - static_cast<Stored*>(begin[n - 1]) == ld;
    return {first, ld, kLane, kMemory, even ? nullptr : begin};
  }

  // Adds to the gradients of the states what comes from outside: of y, and of every state.
  void gather(int64_t d, int64_t n0, int64_t first, int64_t rows, Range units) {
    auto& w = direction_[d];
    const int64_t output = program_.output;
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t own = place(first + n);
      const auto add = [&](T* to, const Stored* from) {
        for (int64_t at = units.first; at < units.last; at += kLane)
          store<V>(to + at, load<V>(to + at) + Lane<T>(at, H).load_from(from));
      };
      const auto d_c = [&](int64_t k) { return w.d_c + (k * N + n0 + n) * ld_cell; };
      if (b_.dy && !s.projected)
        add(output ? d_c(output - 1) : w.d_h + (n0 + n) * ld_state, b_.dy + this->at_y(d, own));
      for (int64_t k = 0; k < kind.own && b_.dcells; ++k)
        add(d_c(k), b_.dcells + this->at_cell(d, own) + k * H);
      if (b_.dhidden) add(w.d_h + (n0 + n) * ld_state, b_.dhidden + this->at_hidden(d, own));
    }
  }

  // Whether a derivative is not zero.
  bool any(int64_t d, int64_t to, int64_t rows, Range units) const {
    const auto& w = direction_[d];
    NonZero<V> seen;
    const auto see = [&](const auto* row) {
      for (int64_t at = units.first; at < units.last; at += kLane)
        seen.add(Lane<T>(at, H).load_from(row));
    };
    for (int64_t n = to; n < to + rows; ++n) {
      for (int64_t g = 0; g < kind.gates_x; ++g) see(w.d_x + n * ld_gates + g * H);
      for (int64_t g = 0; g < kind.gates_u && kind.split; ++g) see(w.d_u + n * ld_gates + g * H);
      for (int64_t g = 0; g < kind.gates_w; ++g) see(w.d_w + n * ld_gates + g * H);
      for (int i = 0; i < params_; ++i) see(w.d_p + (n * params_ + i) * ld_cell);
      if (seen.any()) return true;
    }
    return false;
  }
};

}  // namespace FASTRNN_NAMESPACE
