// A layer from the last step to the first.
//
// For one chunk of steps after the other: each step the cell's derivatives along the rows, then,
// unless they are all zero, the product that carries them to the step before; after the chunk what
// gradients.h makes of it.
#pragma once

#include <limits>
#include <memory>
#include <vector>

#include "cpu/backward_step.h"

namespace FASTRNN_NAMESPACE {

// Base makes a step: BackwardStep of a cell, or ProgramDerivative.
template <class Base, class Stored>
class BackwardPass : Base {
  using Base::active, Base::b_, Base::C, Base::chunk_, Base::D, Base::direction_, Base::entry,
      Base::f, Base::GU, Base::GW, Base::GX, Base::H, Base::head_, Base::I, Base::kind, Base::kNone,
      Base::ld_cell, Base::ld_gates, Base::ld_state, Base::ld_y_, Base::N, Base::note_live, Base::P,
      Base::parallel, Base::params_, Base::place, Base::row, Base::rows_of, Base::s, Base::split,
      Base::zero_, Base::zero_state_;
  using typename Base::Direction;
  using typename Base::Kept;
  using typename Base::O;
  using typename Base::Plain;
  using typename Base::T;
  using typename Base::V;
  using typename Base::Worker;

  // Not below the least normal number: smaller ones are zeros here, and zero is no limit.
  static T limit_of(double grad_clip) {
    constexpr T kLeast = std::numeric_limits<T>::min();
    const T limit = static_cast<T>(grad_clip);
    return !(grad_clip > 0) ? 0 : limit < kLeast ? kLeast : limit;
  }

  const T grad_clip_;  // 0 for none
  // A team of threads, and the steps that are live in its block of rows.
  struct BlockTeam {
    fastrnn::cpu::Team team;
    fastrnn::cpu::Live live;

    BlockTeam(const fastrnn::cpu::Split& split, int64_t steps)
        : team(split.units, split.slices), live(steps) {}
  };
  // Of each direction and block of rows; none where threads share no units.
  std::vector<std::unique_ptr<BlockTeam>> teams_;

 public:
  BackwardPass(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward, threads), grad_clip_(limit_of(backward.grad_clip)) {
    for (int64_t i = 0; i < D * split.rows && split.units > 1; ++i)
      teams_.push_back(std::make_unique<BlockTeam>(split, s.steps));
  }

  void operator()() {
    prepare();
    if (s.steps == 0 && b_.need_weights) this->weight_gradients(0, {0, 0}, /*add=*/false, 1);
    for (int64_t last = s.steps; last > 0; last -= min(last, chunk_)) {
      const Range steps{max(0, last - chunk_), last};
      if (split.units > 1) {
        const int64_t teams = D * split.rows;
        this->share(teams * split.units,
                    [&](int64_t task) { team_loop(task % teams, steps, task / teams); });
      } else {
        this->share(D * split.rows, [&](int64_t task) {
          const Range batch = this->block(task / D);
          if (batch.count() > 0) time_loop(task % D, batch, steps);
        });
      }
      for (int64_t d = 0; d < D && b_.dx; ++d)
        this->share(parallel.threads, [&](int64_t task) { this->input_gradient(task, d, steps); });
      if (b_.need_weights)
        this->share(parallel.threads, [&](int64_t task) {
          this->weight_gradients(task, steps, last < s.steps, parallel.threads);
        });
    }
    for (int64_t i = 0; i < D * N; ++i) {
      const Direction& w = direction_[i / N];
      const int64_t n = i % N, to = i / N * N + entry(n);
      if (b_.dh0) copy(b_.dh0 + to * P, w.d_h + n * ld_state, P);
      for (int64_t k = 0; k < kind.own && b_.dc0; ++k)
        copy(b_.dc0 + to * C + k * H, w.d_c + (k * N + n) * ld_cell, H);
    }
  }

 private:
  void prepare() {
    memset(zero_, 0, kWidth<T, kWide> * sizeof(T));
    memset(zero_state_, 0, max(ld_state, max(ld_cell, C)) * sizeof(Stored));
    if (b_.dx)
      this->each_padding_row([&](int64_t to) { memset(b_.dx + to * I, 0, I * sizeof(Stored)); });
    this->pack(direction_, &Direction::ih, &Direction::hh, &Direction::hw, &Direction::hr);
    for (int64_t d = 0; d < D; ++d) {
      for (int i = 0; i < params_ && b_.need_weights; ++i)  // zero where there is no step
        if (f.forms[i] != fastrnn::Form::kUnit)
          memset(b_.dweights[d].params[i], 0,
                 s.rows * (f.forms[i] == fastrnn::Form::kEach ? H : 1) * sizeof(Stored));
      Direction& w = direction_[d];
      for (int64_t row = 0; row < chunk_ * N && kGrain<Kept> > 1; ++row) {
        clear_beyond(w.d_x + row * ld_gates, GX);
        if (w.d_u) clear_beyond(w.d_u + row * ld_gates, GU);
        if (w.d_w) clear_beyond(w.d_w + row * ld_gates, GW);
        if (s.projected) clear_beyond(w.d_y + row * ld_y_, P);
      }
      for (int64_t n = 0; n < N; ++n) {
        const int64_t from = d * N + entry(n);
        copy_or_zero(w.d_h + n * ld_state, b_.dh_n, from * P, P, ld_state);
        for (int64_t k = 0; k < kind.own; ++k)
          copy_or_zero(w.d_c + (k * N + n) * ld_cell, b_.dc_n, from * C + k * H, H, ld_cell);
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

  void time_loop(int64_t d, Range batch, Range steps) {
    const Direction& w = direction_[d];
    const Buffer<O> scratch(max(w.hh.scratch(), w.hr.scratch()));
    const Buffer<O> left(this->operands_size(batch.count(), max(GU, P)));
    Worker worker(*this);
    for (int64_t step = steps.last - 1; step >= steps.first; --step) {
      bool zero = !s.projected || projection(d, batch, step, steps, scratch, left);
      zero &= this->cells(worker, d, batch, step, steps, {0, H});
      if (note_live(d, step, batch, zero) && (step > 0 || b_.dh0))
        recurrent_product(d, batch, step, steps, {0, w.hh.count()}, scratch, left);
      limit(d, batch, step, {0, P}, {0, H});
    }
  }

  // What a member of a team does of some steps: its slice of the units, all rows of a batch block.
  // The team meets when all units of a step have their derivatives, before the product that mixes
  // them.
  void team_loop(int64_t index, Range steps, int64_t member) {
    const int64_t d = index % D;
    const Range batch = this->block(index / D);
    if (batch.count() == 0) return;
    BlockTeam& mine = *teams_[index];
    const Direction& w = direction_[d];
    const Buffer<O> scratch(w.hh.scratch()), left(this->operands_size(batch.count(), GU));
    Worker worker(*this);
    const int64_t done = s.steps - steps.last, base = done + done / chunk_;  // of phases
    mine.team.run(member, base, base + steps.count() + 1, [&](int64_t phase, int64_t slice) {
      const Range panels = piece(w.hh.count(), slice, mine.team.slices(), 1);
      const Range units{min(H, panels.first * Plain::kUnits), min(H, panels.last * Plain::kUnits)};
      const int64_t step = steps.last - 1 - (phase - base);
      if (step + 1 < steps.last) {
        if (mine.live.at(step + 1) && (step >= 0 || b_.dh0))
          recurrent_product(d, batch, step + 1, steps, panels, scratch, left);
        limit(d, batch, step + 1, units, units);
      }
      if (step < steps.first) return;
      const bool zero = this->cells(worker, d, batch, step, steps, units);
      const Range share = piece(batch.count(), slice, mine.team.slices(), 1);
      if (note_live(d, step, {batch.first + share.first, batch.first + share.last}, zero))
        mine.live.mark(step);
    });
  }

  // d_y, whether all of it is zero, and the gradient of o tanh(c), with a projection.
  bool projection(int64_t d, Range batch, int64_t step, Range steps, O* scratch, O* left) {
    Direction& w = direction_[d];
    const int64_t rows = active(d, step, batch), first = row(d, step) + batch.first;
    Kept* const d_y = w.d_y + (first - rows_of(d, steps).first) * ld_y_;
    NonZero<V> seen;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t p = 0; p < P; p += kLanes<T>) {
        const Lane<T> lane(p, P);
        const V dh = this->take(w.d_h + (batch.first + n) * ld_state, d, place(first + n), lane);
        seen.add(dh);
        lane.store_to(d_y + n * ld_y_, dh);
      }
    const bool zero = !seen.any();
    if (zero && this->finite_weights(d)) {
      memset(w.d_m + batch.first * ld_cell, 0, rows * ld_cell * sizeof(T));
      return true;
    }
    const Rows<O> from = this->operands(d_y, ld_y_, rows, P, left);
    for (int64_t p = 0; p < w.hr.count(); ++p)
      multiply<O, kWide>(from.data, from.ld, rows, P, w.hr.get(p, scratch), w.hr.far(p + 1), zero_,
                         0, w.d_m + batch.first * ld_cell + p * kWidth<T, kWide>, ld_cell);
    return zero;
  }

  // d_h += du W_hh, for some panels of its columns.
  void recurrent_product(int64_t d, Range batch, int64_t step, Range steps, Range panels,
                         O* scratch, O* left) {
    if (GU == 0) return;
    Direction& w = direction_[d];
    const int64_t from = row(d, step) + batch.first - rows_of(d, steps).first;
    const int64_t rows = active(d, step, batch);
    if (s.heads > 1) return heads_product(w, batch, rows, from, left);
    const Rows<O> d_u = this->operands(w.d_hidden() + from * ld_gates, ld_gates, rows, GU, left);
    this->each_panel(step, panels, [&](int64_t p, int64_t next) {
      T* const d_h = w.d_h + batch.first * ld_state + p * kWidth<T, kWide>;
      multiply<O, kWide>(d_u.data, d_u.ld, rows, GU, w.hh.get(p, scratch), w.hh.far(next), d_h,
                         ld_state, d_h, ld_state);
    });
  }

  // The same where there are heads, each of which has its own rows of every gate.
  void heads_product(Direction& w, Range batch, int64_t rows, int64_t from, O* left) {
    for (int64_t at = 0; at < GU; at += head_) {
      const Rows<O> d_u =
          this->operands(w.d_hidden() + from * ld_gates + at, ld_gates, rows, head_, left);
      for (int64_t p = 0; p < w.hh.count(); ++p) {
        T* const d_h = w.d_h + batch.first * ld_state + at % H + p * kWidth<T, kWide>;
        multiply<O, kWide>(d_u.data, d_u.ld, rows, head_, w.hh.get(p).from(at), nullptr, d_h,
                           ld_state, d_h, ld_state);
      }
    }
  }

  // What the gradients of the states of the step before lose on the way there, in some columns.
  void limit(int64_t d, Range batch, int64_t step, Range states, Range units) {
    const int64_t later = this->time(d, step) + d;  // of the two steps
    const bool detach = b_.detach_every > 0 && later % b_.detach_every == 0;
    if (!detach && !f.reset && !(grad_clip_ > 0)) return;
    Direction& w = direction_[d];
    for (int64_t n = batch.first; n < batch.first + active(d, step, batch); ++n) {
      const int64_t before = w.previous[row(d, step) + n];
      T* const d_h = w.d_h + n * ld_state;
      if (before == kNone || (detach && before >= 0)) {
        memset(d_h + states.first, 0, states.count() * sizeof(T));
        for (int64_t k = 0; k < kind.own; ++k)
          memset(w.d_c + (k * N + n) * ld_cell + units.first, 0, units.count() * sizeof(T));
      } else if (grad_clip_ > 0) {
        for (int64_t p = states.first; p < states.last; ++p)  // a NaN stays
          d_h[p] = d_h[p] > grad_clip_ ? grad_clip_ : d_h[p] < -grad_clip_ ? -grad_clip_ : d_h[p];
      }
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
