// A layer of a few units and many batch rows. Its units would leave most of a register empty, so a
// register holds one unit of as many rows. Nothing is packed, and the states and derivatives of a
// block of rows stay in the first-level cache. The sums of a row have the order that they have in
// panels, and so its results the same bits.
#pragma once

#include "cpu/zeros.h"

namespace FASTRNN_NAMESPACE {

inline constexpr int64_t kFewUnits = 8, kFewInputs = 16;
// Weights of a direction whose gradients, a register each, leave room in a first-level cache.
inline constexpr int64_t kFewWeights = 400;
// Whether a register has room for the rows of a layer of that type, whose products are plain ones.
template <class Stored>
inline constexpr bool kMayBeFew =
    std::is_same_v<Stored, Compute<Stored>> && !kConverts<Stored> && kLanes<Stored> >= 4;

template <class Cell, class Stored>
class FewUnits : Layer<Cell, Stored> {
  using Base = Layer<Cell, Stored>;
  using Base::D, Base::f, Base::G, Base::H, Base::I, Base::N, Base::parallel, Base::s, Base::S;
  using typename Base::T;
  using typename Base::V;
  static constexpr int64_t kLane = kLanes<T>, kGates = G * kFewUnits;
  // Twice as many fill the registers of panels as well, which turn no rows into lanes. So many took
  // 0.4 to 0.9 of the time of panels, twice as many 0.8 to 2.1.
  static constexpr int64_t kMost = min(kFewUnits, kLane >= 8 ? kLane / 2 : kLane / 4);
  static constexpr int64_t kPieces = 64;  // of the batch, whoever runs them: sums have one order

  // Batch rows, one for each lane or fewer.
  struct Block {
    int64_t first, rows;
  };
  struct State {
    V h[kFewUnits], c[kFewUnits];
  };
  // Gradients of the weights of a direction, a sum in each lane: of each gate of a unit I + H
  // numbers and those of its two biases.
  struct Sums {
    V of[kFewWeights + 2 * kGates];
  };

  const fastrnn::Backward<Stored>* const b_ = nullptr;

 public:
  // Of a forward call, all of whose rows take every step.
  static bool suits(const fastrnn::Forward<Stored>& f) {
    const Sizes& s = f.size;
    return s.hidden <= kMost && s.input <= kFewInputs && s.batch >= 8 && s.steps > 0 &&
           s.active[s.steps - 1] == s.batch && !s.place && !s.order && !f.reset && !s.projected;
  }
  static bool suits(const fastrnn::Backward<Stored>& b) {
    const Sizes& s = b.forward.size;
    return suits(b.forward) && G * s.hidden * (s.input + s.hidden) <= kFewWeights && !b.dcells &&
           !b.of_rows && b.detach_every == 0 && b.grad_clip == 0;
  }

  FewUnits(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads) {}
  FewUnits(const fastrnn::Backward<Stored>& backward, const Parallel& threads)
      : Base(backward.forward, threads), b_(&backward) {}

  void forward() {
    run(parallel, D * blocks(), [&](int64_t task) { forward(task % D, block(task / D)); });
  }

  void backward() {
    const int64_t pieces = min(kPieces, blocks());
    const Buffer<T> partial(b_->need_weights ? pieces * D * count() : 0);
    run(parallel, pieces, [&](int64_t i) {
      for (int64_t d = 0; d < D; ++d) {
        const fastrnn::Weights<const Stored>& w = f.weights[d];
        const bool may_skip = finite<T>(w.w_ih, G * H * I) && finite<T>(w.w_hh, G * H * H);
        Sums sums;
        for (int64_t k = 0; k < count(); ++k) sums.of[k] = V{};
        const Range all = piece(blocks(), i, pieces, 1);
        for (int64_t k = all.first; k < all.last; ++k) backward(d, block(k), may_skip, sums);
        if (b_->need_weights) add_lanes(sums, partial + (i * D + d) * count());
      }
    });
    if (!b_->need_weights) return;
    run(parallel, 1, [&](int64_t) {
      for (int64_t d = 0; d < D; ++d) {
        for (int64_t i = 1; i < pieces; ++i)
          for (int64_t k = 0; k < count(); ++k)
            partial[d * count() + k] += partial[(i * D + d) * count() + k];
        give(partial + d * count(), b_->dweights[d]);
      }
    });
  }

 private:
  int64_t blocks() const { return ceil_div(N, kLane); }
  Block block(int64_t i) const { return {i * kLane, min(kLane, N - i * kLane)}; }
  int64_t count() const { return G * H * (I + H + 2); }  // of a direction's weights

  // Column k of some rows, `ld` apart, into v[k], and back. Lanes of no row are zero, or ignored.
  static FASTRNN_INLINE void read(V* v, const T* from, int64_t ld, int64_t columns, int64_t rows) {
    for (int64_t k = 0; k < columns; ++k) {
      T lane[kLane] = {};
      if (rows == kLane) {
        FASTRNN_UNROLL
        for (int64_t r = 0; r < kLane; ++r) lane[r] = from[r * ld + k];
      } else {
        for (int64_t r = 0; r < rows; ++r) lane[r] = from[r * ld + k];
      }
      v[k] = load<V>(lane);
    }
  }
  static FASTRNN_INLINE void write(T* to, int64_t ld, const V* v, int64_t columns, int64_t rows) {
    for (int64_t k = 0; k < columns; ++k) {
      T lane[kLane];
      store<V>(lane, v[k]);
      if (rows == kLane) {
        FASTRNN_UNROLL
        for (int64_t r = 0; r < kLane; ++r) to[r * ld + k] = lane[r];
      } else {
        for (int64_t r = 0; r < rows; ++r) to[r * ld + k] = lane[r];
      }
    }
  }

  void forward(int64_t d, Block block) {
    const auto [first, rows] = block;
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    const int64_t own = (d * N + first) * H;
    State now{}, next{};
    read(now.h, f.h0 + own, H, H, rows);
    if constexpr (Cell::kKeepsC) read(now.c, f.c0 + own, H, H, rows);
    V x[kFewInputs], saved[S > 0 ? S : 1][kFewUnits];
    for (int64_t step = 0; step < s.steps; ++step) {
      const int64_t row = this->row(d, step) + first;
      read(x, f.x + row * I, I, I, rows);
      for (int64_t j = 0; j < H; ++j) {
        V x_part[G], u_part[G], kept[S > 0 ? S : 1];
        for (int64_t g = 0; g < G; ++g) {
          const int64_t at = g * H + j;
          const T b_ih = w.b_ih ? w.b_ih[at] : 0, b_hh = w.b_hh ? w.b_hh[at] : 0;
          V sum = set1<V>(Cell::kSplit ? b_ih : b_ih + b_hh);
          for (int64_t k = 0; k < I; ++k) sum = fma(x[k], set1<V>(w.w_ih[at * I + k]), sum);
          x_part[g] = sum;
          if constexpr (Cell::kSplit) sum = set1<V>(b_hh);
          for (int64_t k = 0; k < H; ++k) sum = fma(now.h[k], set1<V>(w.w_hh[at * H + k]), sum);
          if constexpr (!Cell::kSplit) x_part[g] = sum;
          u_part[g] = Cell::kSplit ? sum : -V{};
        }
        next.h[j] = now.h[j];
        Cell::forward(x_part, u_part, next.h[j], now.c[j], kept);
        for (int64_t i = 0; i < S; ++i) saved[i][j] = kept[i];
      }
      for (int64_t j = 0; j < H; ++j) now.h[j] = next.h[j];
      write(f.y + this->at_y(d, row), D * H, now.h, H, rows);
      if (!f.save) continue;
      for (int64_t i = 0; i < S; ++i) write(this->gates(d, row) + i * H, S * H, saved[i], H, rows);
      if constexpr (Cell::kKeepsC) write(f.cells + this->at_cell(d, row), H, now.c, H, rows);
    }
    write(f.h_n + own, H, now.h, H, rows);
    if constexpr (Cell::kKeepsC) write(f.c_n + own, H, now.c, H, rows);
  }

  // A state's gradient at the end of the sequence.
  void read_or_zero(V* v, const T* from, Block block) const {
    for (int64_t j = 0; j < H; ++j) v[j] = V{};
    if (from) read(v, from, H, H, block.rows);
  }

  // Whether a step of finite weights sends back nothing: zeros come to it, and what they meet is
  // finite. The rows of a block lie together in every matrix.
  bool dead(int64_t d, Block block, int64_t step, const State& derivative) const {
    NonZero<V> seen;
    for (int64_t j = 0; j < H; ++j) {
      seen.add(derivative.h[j]);
      if constexpr (Cell::kKeepsC) seen.add(derivative.c[j]);
    }
    if (seen.any()) return false;
    const auto [first, rows] = block;
    const int64_t row = this->row(d, step) + first, width = D * H;
    if (b_->dy && !zero<T>(b_->dy + row * width, rows * width)) return false;
    if (!finite<T>(f.x + row * I, rows * I) || !finite<T>(f.y + row * width, rows * width) ||
        !finite<T>(this->gates(d, row), rows * S * H))
      return false;
    const int64_t own = (d * N + first) * H;
    const int64_t before = step > 0 ? this->row(d, step - 1) + first : 0;
    if (!(step > 0 ? finite<T>(f.y + before * width, rows * width)
                   : finite<T>(f.h0 + own, rows * H)))
      return false;
    if constexpr (Cell::kKeepsC)
      return finite<T>(f.cells + this->at_cell(d, row), rows * H) &&
             finite<T>(step > 0 ? f.cells + this->at_cell(d, before) : f.c0 + own, rows * H);
    return true;
  }

  void backward(int64_t d, Block block, bool may_skip, Sums& sums) {
    const auto [first, rows] = block;
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    const int64_t own = (d * N + first) * H;
    const auto past = [&](V* v, const T* initial, const T* all, int64_t ld, int64_t step) {
      if (step < 0)
        read(v, initial + own, H, H, rows);
      else
        read(v, all, ld, H, rows);
    };
    const auto h_of = [&](V* v, int64_t step) {
      past(v, f.h0, f.y + this->at_y(d, step < 0 ? 0 : this->row(d, step) + first), D * H, step);
    };
    const auto c_of = [&](V* v, int64_t step) {
      past(v, f.c0, f.cells + this->at_cell(d, step < 0 ? 0 : this->row(d, step) + first), H, step);
    };
    State now{}, before{}, derivative{};
    int64_t here = -1;  // the step after which the state is `now`
    read_or_zero(derivative.h, b_->dh_n ? b_->dh_n + own : nullptr, block);
    if constexpr (Cell::kKeepsC)
      read_or_zero(derivative.c, b_->dc_n ? b_->dc_n + own : nullptr, block);
    V x[kFewInputs], saved[S > 0 ? S : 1][kFewUnits], dx[kGates], du[kGates];
    for (int64_t step = s.steps - 1; step >= 0; --step) {
      const int64_t row = this->row(d, step) + first;
      if (may_skip && dead(d, block, step, derivative)) {
        if (b_->dx && d == 0) memset(b_->dx + row * I, 0, rows * I * sizeof(T));
        continue;
      }
      if (here != step) {
        h_of(now.h, step);
        if constexpr (Cell::kKeepsC) c_of(now.c, step);
      }
      h_of(before.h, step - 1);
      if constexpr (Cell::kKeepsC) c_of(before.c, step - 1);
      for (int64_t i = 0; i < S; ++i) read(saved[i], this->gates(d, row) + i * H, S * H, H, rows);
      if (b_->dy) {
        V dy[kFewUnits];
        read(dy, b_->dy + this->at_y(d, row), D * H, H, rows);
        for (int64_t j = 0; j < H; ++j) derivative.h[j] += dy[j];
      }
      for (int64_t j = 0; j < H; ++j) {
        V kept[S > 0 ? S : 1], x_part[G], u_part[G];
        for (int64_t i = 0; i < S; ++i) kept[i] = saved[i][j];
        const V rest = Cell::backward(kept, before.h[j], now.h[j], before.c[j], now.c[j],
                                      derivative.h[j], derivative.c[j], x_part, u_part);
        derivative.h[j] = Cell::kKeepsH ? rest + V{} : V{};  // no zero has a sign
        for (int64_t g = 0; g < G; ++g) {
          dx[g * H + j] = x_part[g];
          if constexpr (Cell::kSplit) du[g * H + j] = u_part[g];
        }
      }
      const V* const hidden = Cell::kSplit ? du : dx;
      for (int64_t k = 0; k < H; ++k)
        for (int64_t at = 0; at < G * H; ++at)
          derivative.h[k] = fma(hidden[at], set1<V>(w.w_hh[at * H + k]), derivative.h[k]);
      if (b_->dx) input_gradient(d, row, rows, dx);
      if (b_->need_weights) {
        read(x, f.x + row * I, I, I, rows);
        V* sum = sums.of;
        for (int64_t at = 0; at < G * H; ++at, sum += 2) {
          for (int64_t k = 0; k < I; ++k, ++sum) *sum = fma(dx[at], x[k], *sum);
          for (int64_t k = 0; k < H; ++k, ++sum) *sum = fma(hidden[at], before.h[k], *sum);
          sum[0] += dx[at];
          sum[1] += hidden[at];
        }
      }
      now = before;
      here = step - 1;
    }
    if (b_->dh0) write(b_->dh0 + own, H, derivative.h, H, rows);
    if (Cell::kKeepsC && b_->dc0) write(b_->dc0 + own, H, derivative.c, H, rows);
  }

  void input_gradient(int64_t d, int64_t row, int64_t rows, const V* dx) {
    const T* const w_ih = f.weights[d].w_ih;
    T* const to = b_->dx + row * I;
    V sum[kFewInputs], other[kFewInputs];
    for (int64_t k = 0; k < I; ++k) {
      sum[k] = V{};
      for (int64_t at = 0; at < G * H; ++at)
        sum[k] = fma(dx[at], set1<V>(w_ih[at * I + k]), sum[k]);
    }
    if (d > 0) {  // whichever direction comes first in panels, the sum of both is the same
      read(other, to, I, I, rows);
      for (int64_t k = 0; k < I; ++k) sum[k] += other[k];
    }
    write(to, I, sum, I, rows);
  }

  void add_lanes(const Sums& sums, T* to) const {
    for (int64_t k = 0; k < count(); ++k) {
      T lane[kLane], all = 0;
      store<V>(lane, sums.of[k]);
      for (const T each : lane) all += each;
      to[k] = all;
    }
  }
  void give(const T* from, const fastrnn::Weights<Stored>& to) const {
    for (int64_t at = 0; at < G * H; ++at) {
      for (int64_t k = 0; k < I; ++k) to.w_ih[at * I + k] = *from++;
      for (int64_t k = 0; k < H; ++k) to.w_hh[at * H + k] = *from++;
      if (to.b_ih) {
        to.b_ih[at] = from[0];
        to.b_hh[at] = from[1];
      }
      from += 2;
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
