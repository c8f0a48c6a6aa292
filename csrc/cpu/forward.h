// A layer from the first step to the last.
//
// For one chunk of steps after the other: the input part of the pre-activations of all its rows in
// one product, then the steps. When a micro-kernel has run down a panel of W_hh, all gates of its
// units are in one tile, and the cell's arithmetic follows at once.
#pragma once

#include <memory>
#include <vector>

#include "cpu/forward_step.h"

namespace FASTRNN_NAMESPACE {

// Base makes a step: ForwardStep of a cell, or ProgramStep.
template <class Base, class Stored>
class ForwardPass : Base {
  using Base::active, Base::C, Base::chunk_, Base::D, Base::direction_, Base::entry, Base::f,
      Base::H, Base::I, Base::kind, Base::kLd, Base::kRounds, Base::ld_cell, Base::ld_state,
      Base::ld_x, Base::N, Base::P, Base::parallel, Base::place, Base::row, Base::rows_of, Base::s,
      Base::split, Base::zero_;
  using typename Base::Direction;
  using typename Base::O;
  using typename Base::Step;
  using typename Base::T;
  using typename Base::Worker;
  static constexpr int kGated = Base::kLd / kLanes<T>;

  // A type of this instruction set: the linker would merge the destructors of a vector of others.
  struct BlockTeam {
    fastrnn::cpu::Team team;

    explicit BlockTeam(const fastrnn::cpu::Split& split) : team(split.units, split.slices) {}
  };
  // Of each direction and block of rows; none where threads share no units.
  std::vector<std::unique_ptr<BlockTeam>> teams_;

 public:
  using Base::pack;

  ForwardPass(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads) {
    for (int64_t i = 0; i < D * split.rows && split.units > 1; ++i)
      teams_.push_back(std::make_unique<BlockTeam>(split));
  }

  void operator()() {
    pack();
    over_time();
    clear_padding();
  }

  // From the initial states to the final ones.
  void over_time() {
    this->load_states();
    if (split.units > 1) {
      const int64_t teams = D * split.rows;
      this->share(teams * split.units,
                  [&](int64_t task) { team_loop(task % teams, task / teams); });
    } else if (D * split.rows >= parallel.threads) {
      this->share(D * split.rows, [&](int64_t task) {
        const Range batch = this->block(task / D);
        const Buffer<O> gathered(gathered_size(batch));
        this->each_chunk(chunk_, [&](Range steps) {
          input_product(task % D, batch, steps, input_panels(1, 0), gathered);
          time_loop(task % D, batch, steps);
        });
      });
    } else {  // more threads can share the input product than the loop
      this->each_chunk(chunk_, [&](Range steps) {
        this->share(D * parallel.threads, [&](int64_t task) {
          for (int64_t b = 0; b < split.rows; ++b) {
            const Range batch = this->block(b);
            const Buffer<O> gathered(gathered_size(batch));
            input_product(task % D, batch, steps, input_panels(parallel.threads, task / D),
                          gathered);
          }
        });
        this->share(D * split.rows,
                    [&](int64_t task) { time_loop(task % D, this->block(task / D), steps); });
      });
    }
    for (int64_t i = 0; i < D * N && split.units > 1; ++i)
      this->store_final(i / N, i % N, this->h_after(i / N, s.steps - 1, i % N));
  }

 private:
  // Results where there is no step: zero in the matrices, the initial state of an empty sequence.
  void clear_padding() {
    this->each_padding_row([&](int64_t to) {
      memset(f.y + to * D * P, 0, D * P * sizeof(Stored));
      for (int64_t d = 0; d < D && f.save; ++d) {
        if (kind.saved > 0) memset(this->gates(d, to), 0, kind.saved * H * sizeof(Stored));
        if (C > 0) memset(f.cells + this->at_cell(d, to), 0, C * sizeof(Stored));
        if (f.hidden) memset(f.hidden + this->at_hidden(d, to), 0, H * sizeof(Stored));
      }
    });
    for (int64_t d = 0; d < D; ++d)
      for (int64_t n = s.steps ? s.active[0] : 0; n < N; ++n)
        this->store_final(d, n, direction_[d].h + n * ld_state);
  }
  // Piece i of n of the panels of W_ih, and of those that a step goes through.
  Range input_panels(int64_t n, int64_t i) const {
    return piece(direction_[0].ih.count(), i, n, 1);
  }
  Range panels(int64_t n, int64_t i) const {
    return piece(direction_[0].hh.count(), i, n, this->cut());
  }

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
    const int64_t ld = round_up(I, kGrain<O>);
    const int64_t rows = this->count(d, batch, steps);
    if (!lie(batch))
      this->each_step(d, batch, steps, [&](int64_t step, int64_t before) {
        O* to = gathered + before * ld;
        const int64_t first = row(d, step) + batch.first;
        for (int64_t n = 0; n < active(d, step, batch); ++n, to += ld) {
          clear_beyond(to, I);
          copy(to, f.x + place(first + n) * I, I);
        }
      });
    const O* x = gathered;
    if constexpr (std::is_same_v<Stored, O>)
      if (lie(batch)) x = f.x + rows_of(d, steps).first * I;
    for (int64_t p = panels.first; p < panels.last; ++p) {
      const Panel<O> panel = w.ih.get(p);
      for (int64_t i = 0; i < rows; i += kRowBlock<O>)
        multiply<O, kGated>(x + i * ld, ld, min(kRowBlock<O>, rows - i), I, panel, w.ih.far(p + 1),
                            w.b_ih + p * kLd, 0, this->x_part(d, p, chunk_ * batch.first + i),
                            ld_x());
    }
  }

  // What a member of a team does: its slice of the units, all rows of a batch block. Each chunk is
  // a phase for the input product and one for every step.
  void team_loop(int64_t index, int64_t member) {
    const int64_t d = index % D;
    const Range batch = this->block(index / D);
    if (batch.count() == 0) return;
    fastrnn::cpu::Team& team = teams_[index]->team;
    const Buffer<O> gathered(gathered_size(batch));
    Worker worker(*this);
    int64_t phases = 0;
    this->each_chunk(chunk_, [&](Range steps) {
      const int64_t base = phases + 1 - steps.first;  // phase of step 0
      const auto phase = [&](int64_t at, int64_t slice) {
        const int64_t slices = team.slices();
        if (at < base + steps.first)
          return input_product(d, batch, steps, input_panels(slices, slice), gathered);
        // All rows are active in all steps.
        const int64_t step = at - base, all = row(d, step) - rows_of(d, steps).first;
        const int64_t before = all / N * batch.count(), partial = slice * N + batch.first;
        this->recurrent_product(worker, this->at(d, step, batch, before, partial), step,
                                panels(slices, slice));
      };
      team.run(member, phases, phases + 1 + steps.count(), phase);
      phases += 1 + steps.count();
    });
  }

  void time_loop(int64_t d, Range batch, Range steps) {
    Direction& w = direction_[d];
    Worker worker(*this);
    const Range all = panels(1, 0);
    this->each_step(d, batch, steps, [&](int64_t step, int64_t before) {
      const int64_t first = row(d, step) + batch.first;
      const Step now = this->at(d, step, batch, before, batch.first);
      for (int64_t n = 0; n < now.rows && f.reset; ++n)
        if (f.reset[place(first + n)]) {
          memset(now.h_prev + n * ld_state, 0, P * sizeof(T));
          if constexpr (kRounds)
            memset(now.left + n * ld_state, 0, round_up(P, kGrain<O>) * sizeof(O));
          for (int64_t k = 0; k < kind.own; ++k)
            memset(now.c + (k * N + n) * ld_cell, 0, H * sizeof(T));
        }
      this->recurrent_product(worker, now, step, all);
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
        this->store_final(d, batch.first + n, now.h + n * ld_state);
    });
  }
};

}  // namespace FASTRNN_NAMESPACE
