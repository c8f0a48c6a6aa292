// A step of a layer whose cell is a program (program.h), forward and backward.
//
// Forward, the recurrent product of some units is made for all rows of a step, all gates, and then
// their code runs. Only where units of a row meet it waits for the whole row. Backward, the code
// runs for all units, and the products that follow are those of every cell.
#pragma once

#include "cpu/backward_step.h"
#include "cpu/forward_state.h"
#include "cpu/interpreter.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN Kind kind_of(const fastrnn::Program& program) {
  const fastrnn::CellInfo& c = program.info;
  return {c.gates, c.hidden_gates, c.saved, c.own, c.split};
}
// Planes that a code is given.
FASTRNN_FN int64_t forward_inputs(const fastrnn::CellInfo& c) {
  return (c.split ? c.gates : 0) + c.hidden_gates + 1 + c.own + c.params;
}
FASTRNN_FN int64_t backward_inputs(const fastrnn::CellInfo& c) {
  return c.saved + 3 * (1 + c.own) + c.params;
}
FASTRNN_FN int64_t common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// The parameters of one direction, as planes.
template <class Stored>
class Parameters {
  using T = Compute<Stored>;
  using L = Lies<T>;
  const fastrnn::Forward<Stored>& f_;
  const int64_t d_, H_, ld_;
  const int count_;
  Buffer<T> units_;     // [those with a number for each unit, ld]
  Buffer<void*> rows_;  // [parameters, rows of a step]
  const int64_t most_;

 public:
  Parameters(const fastrnn::Forward<Stored>& f, int64_t d, int64_t ld)
      : f_(f),
        d_(d),
        H_(f.size.hidden),
        ld_(ld),
        count_(static_cast<int>(f.program->info.params)),
        units_(count_ * ld),
        rows_(f.size.place ? count_ * f.size.batch : 0),
        most_(f.size.batch) {
    if (count_ > 0) memset(units_, 0, count_ * ld * sizeof(T));
    for (int i = 0; i < count_; ++i)
      if (f.forms[i] == fastrnn::Form::kUnit) copy(units_ + i * ld, f.weights[d].params[i], H_);
  }

  // Where they lie for `rows` rows of a step, from `first` in the order of time on.
  void place(int64_t first, int64_t rows, L* lies) {
    constexpr bool kNarrow = !std::is_same_v<Stored, T>;
    for (int i = 0; i < count_; ++i) {
      if (f_.forms[i] == fastrnn::Form::kUnit) {
        lies[i] = {units_ + i * ld_, 0, kLanes<T>, L::kPadded, nullptr};
        continue;
      }
      const bool each = f_.forms[i] == fastrnn::Form::kEach;
      const int64_t width = each ? H_ : 1;
      auto* const data = const_cast<Stored*>(f_.weights[d_].params[i]);
      const auto kind =
          each ? (kNarrow ? L::kNarrow : L::kExact) : (kNarrow ? L::kNarrowSplat : L::kSplat);
      void** const begin = f_.size.place ? rows_ + i * most_ : nullptr;
      for (int64_t n = 0; n < rows && f_.size.place; ++n)
        begin[n] = data + f_.size.place[first + n] * width;
      lies[i] = {data + first * width, width, kLanes<T>, kind, f_.size.place ? begin : nullptr};
    }
  }
};

template <class Stored>
struct ProgramStep : ForwardState<Schedule<Stored>, Stored, kWide, 0> {
  using Base = ForwardState<Schedule<Stored>, Stored, kWide, 0>;
  using Base::direction_, Base::f, Base::H, Base::kind, Base::kLd, Base::kRounds, Base::ld_cell,
      Base::ld_state, Base::N, Base::P, Base::place, Base::s, Base::x_part;
  using typename Base::O;
  using typename Base::Step;
  using typename Base::T;
  using typename Base::V;
  using L = Lies<T>;
  static constexpr int64_t kTileBytes = 32 * 1024;  // of sums that wait for their code

  const fastrnn::Program& program_;
  const int64_t cut_;        // panels that hold whole units, all gates
  const int64_t most_;       // panels whose sums wait together
  const int64_t registers_;  // of the units

  ProgramStep(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads, kind_of(*forward.program)),
        program_(*forward.program),
        cut_(max(1, kind.gates_u / max(1, common_divisor(kind.gates_u, kWide)))),
        most_(program_.row_sums || kind.gates_u == 0
                  ? direction_[0].hh.count()
                  : round_up(max(1, kTileBytes /
                                        (max(1, N / this->split.rows) * kLd * int64_t{sizeof(T)})),
                             cut_)),
        registers_(ceil_div(H, kLanes<T>)) {}

  // Panels between which a step can be cut.
  int64_t cut() const { return cut_; }

  struct Worker {
    Interpreter<T> interpreter;
    Parameters<Stored> parameters[2];
    Buffer<T> tile;      // [rows, the sums of some panels]
    Buffer<T> fresh;     // [N, ld_cell] h before the projection
    Buffer<void*> rows;  // of the saved planes
    const bool still;    // whether no parameter has numbers for each row
    // What was run in one block, for each of the two places of h.
    struct {
      const T* h = nullptr;
      int64_t rows, first, count;
    } seen[2];

    explicit Worker(const ProgramStep& step)
        : interpreter(step.program_.forward, forward_inputs(step.program_.info), step.H,
                      step.program_.row_sums),
          parameters{{step.f, 0, step.ld_cell}, {step.f, step.D - 1, step.ld_cell}},
          tile(step.N * min(step.most_, step.direction_[0].hh.count()) * kLd),
          fresh(step.s.projected ? step.N * step.ld_cell : 0),
          rows(step.f.save && step.s.place ? step.kind.saved * step.N : 0),
          still(all_units(step.f)) {}

    static bool all_units(const fastrnn::Forward<Stored>& f) {
      bool all = true;
      for (int64_t i = 0; i < f.program->info.params; ++i)
        all &= f.forms[i] == fastrnn::Form::kUnit;
      return all;
    }
  };

  // u = W_hh h_{t-1} + bias for the units of some panels, and their cells.
  void recurrent_product(Worker& worker, const Step& now, int64_t step, Range panels) {
    if (now.rows == 0) return;
    if (kind.gates_u == 0) return cells(worker, now, panels, {0, registers_});
    const int64_t all = direction_[0].hh.count();
    if (panels.count() == all && all <= most_) {  // without a division, which a short step notices
      product(worker, now, step, panels);
      return cells(worker, now, panels, {0, registers_});
    }
    const Range blocks{0, ceil_div(panels.count(), most_)};
    this->each_panel(step, blocks, [&](int64_t block, int64_t) {
      const int64_t first = panels.first + block * most_;
      const Range some{first, min(panels.last, first + most_)};
      product(worker, now, step, some);
      cells(worker, now, some,
            {some.first * kWide / kind.gates_u,
             some.last == all ? registers_ : some.last * kWide / kind.gates_u});
    });
  }

 private:
  void product(Worker& worker, const Step& now, int64_t step, Range panels) {
    const auto& w = direction_[now.d];
    const int64_t ld = panels.count() * kLd, ld_init = kind.split ? 0 : this->ld_x();
    const int64_t depth = s.heads > 1 ? P / s.heads : P;
    this->each_panel(step, panels, [&](int64_t p, int64_t next) {
      const T* const init = kind.split ? w.b_hh + p * kLd : x_part(now.d, p, now.chunk_row);
      T* const out = worker.tile + (p - panels.first) * kLd;
      const O* left = now.left;
      if (s.heads > 1) {  // the first unit of a panel is of the same head as the others
        const int64_t unit = p * kWide / kind.gates_u * kLanes<T>;
        left += unit / depth * depth;
      }
      const Panel<O> panel = w.hh.get(p);
      if (now.rows == 1)
        micro_of<O, kWide>(1, panel)(left, ld_state, panel, depth, init, ld_init, out, ld, {});
      else
        multiply<O, kWide>(left, ld_state, now.rows, depth, panel, w.hh.far(next), init, ld_init,
                           out, ld);
    });
  }

  // The code for some registers of units, whose sums are those of some panels.
  void cells(Worker& worker, const Step& now, Range panels, Range units) {
    constexpr int64_t kLane = kLanes<T>;
    const int64_t own = kind.own, ld_tile = panels.count() * kLd;
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
    L* lies = worker.interpreter.lies();
    const auto tile = [&](T* first, int64_t row, int64_t unit) {
      *lies++ = {first, row, unit, L::kPadded, nullptr};
    };
    for (int64_t g = 0; g < kind.gates_x && kind.split; ++g)
      tile(x + g * kLane, this->ld_x(), kind.gates_x * kLane);
    // Register 0 would be before the tile's begin where that is another one.
    for (int64_t g = 0; g < kind.gates_u; ++g)
      tile(worker.tile + (g - units.first * kind.gates_u) * kLane, ld_tile, kind.gates_u * kLane);
    tile(now.h_prev, ld_state, kLane);
    for (int64_t k = 0; k < own; ++k) tile(now.c + k * N * ld_cell, ld_cell, kLane);
    worker.parameters[now.d].place(now.row, now.rows, lies);
    lies += program_.info.params;
    tile(h, ld_h, kLane);
    for (int64_t k = 0; k < own; ++k) tile(now.c + k * N * ld_cell, ld_cell, kLane);
    for (int64_t i = 0; i < kind.saved; ++i) *lies++ = saved(worker, now, i);
    const bool padded = !f.save && worker.still;
    worker.interpreter.run(now.rows, units, padded);
    results(now, h, ld_h, all);
    // Then nothing but h and x is elsewhere in the next step.
    if (padded && worker.interpreter.at_once(now.rows, units)) {
      const int64_t k = now.h < now.h_prev ? 0 : 1;
      worker.seen[k] = {now.h, now.rows, units.first, units.count()};
      worker.interpreter.keep(k);
    }
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
  static void move(To* to, const T* from, Range units) {
    for (int64_t at = units.first; at < units.last; at += kLanes<T>)
      Lane<T>(at, units.last).store_to(to, load<V>(from + at));
  }

  // Where the states of some units go besides.
  void results(const Step& now, const T* h, int64_t ld_h, Range units) const {
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
  using Base::active, Base::b_, Base::direction_, Base::f, Base::GU, Base::GX, Base::H, Base::kind,
      Base::ld_cell, Base::ld_gates, Base::ld_state, Base::N, Base::params_, Base::place,
      Base::previous_c, Base::previous_h, Base::row, Base::rows_of, Base::s;
  using typename Base::O;
  using typename Base::T;
  using typename Base::V;
  using L = Lies<T>;
  static constexpr int64_t kLane = kLanes<T>;
  static constexpr auto kMemory = std::is_same_v<Stored, T> ? L::kExact : L::kNarrow;
  static constexpr auto kOperand = std::is_same_v<O, T> ? L::kExact : L::kNarrow;

  const fastrnn::Program& program_;

  ProgramDerivative(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward, threads, kind_of(*backward.forward.program)),
        program_(*backward.forward.program) {}

  struct Worker {
    Interpreter<T> interpreter;
    Parameters<Stored> parameters[2];
    Buffer<void*> rows;  // [planes in memory, N]
    explicit Worker(const ProgramDerivative& step)
        : interpreter(step.program_.backward, backward_inputs(step.program_.info), step.H,
                      step.program_.row_sums),
          parameters{{step.f, 0, step.ld_cell}, {step.f, step.D - 1, step.ld_cell}},
          rows((step.kind.saved + 2 + 2 * step.kind.own) * step.N) {}
  };

  // The derivatives of a step, and whether they are all zero.
  bool cells(Worker& worker, int64_t d, Range batch, int64_t step, Range steps, Range units) {
    const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
    const int64_t to = first - rows_of(d, steps).first;
    if (rows == 0 || units.count() == 0) return true;
    gather(d, batch.first, first, rows, units);
    auto& w = direction_[d];
    const bool* const reads = program_.backward.reads;
    L* lies = worker.interpreter.lies();
    void** begin = worker.rows;
    const auto memory = [&](auto&& at) {  // at(n): where row n begins
      const bool read = reads[lies - worker.interpreter.lies()];
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
    gates(w.d_x, kind.gates_x);
    if (kind.split) gates(w.d_u, kind.gates_u);
    states();
    for (int i = 0; i < params_; ++i) tile(w.d_p + (to * params_ + i) * ld_cell, params_ * ld_cell);
    worker.interpreter.run(rows, {units.first / kLane, ceil_div(units.last, kLane)}, false);
    return !any(d, to, rows, units);
  }

 private:
  // Rows that begin at those places, which mostly are equally far apart.
  static L lie(void* const* begin, int64_t rows) {
    auto* const first = static_cast<Stored*>(begin[0]);
    const int64_t ld = rows > 1 ? static_cast<Stored*>(begin[1]) - first : 0;
    bool even = true;
    for (int64_t n = 2; n < rows; ++n)
      even &= static_cast<Stored*>(begin[n]) - static_cast<Stored*>(begin[n - 1]) == ld;
    return {first, ld, kLane, kMemory, even ? nullptr : begin};
  }

  // Adds to the gradients of the states what comes from outside: of y, and of every c_t.
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
      for (int i = 0; i < params_; ++i) see(w.d_p + (n * params_ + i) * ld_cell);
      if (seen.any()) return true;
    }
    return false;
  }
};

}  // namespace FASTRNN_NAMESPACE
