// What follows the product of a step: the cell, forward and backward, for a thread that has one
// unit of one row. Loads of what no step of the loop writes come first, and stay as they lie
// until they are needed, so that they are under way while the product is made.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/steps.h"

namespace fastrnn::cuda {

// Whether the cell keeps a wide state from step to step: c, or h itself (steps.h).
template <class Cell>
inline constexpr bool kKeeps = Cell::kKeepsC || Cell::kKeepsH;

// Elements from row to row where K are rounded up to 16 bytes.
template <class T>
FASTRNN_DEVICE int64_t pitch(int64_t k) {
  return (k + kPack<T> - 1) / kPack<T> * kPack<T>;
}

// Element `at`, as it lies; zero if not `inside`.
template <class T>
FASTRNN_DEVICE T read(const void* from, int64_t at, bool inside) {
  return inside ? static_cast<const T*>(from)[at] : from_compute<T>(0);
}
template <class T>
FASTRNN_DEVICE void write(void* to, int64_t at, Compute<T> value) {
  static_cast<T*>(to)[at] = from_compute<T>(value);
}
// What the launch before may have written while this one ran.
template <class V>
FASTRNN_DEVICE V read_new(const void* from, int64_t at) {
  return load_uncached<1>(static_cast<const V*>(from) + at).x[0];
}

// Step i of direction d.
struct Step {
  int d;
  int64_t i, t, first;  // time, and the row at which its rows of the matrices begin

  FASTRNN_DEVICE Step(const Sizes& s, int d, int64_t i)
      : d(d), i(i), t(d == 0 ? i : s.steps - 1 - i), first(first_row(s, t)) {}

  FASTRNN_DEVICE static int64_t first_row(const Sizes& s, int64_t t) {
    return s.offsets == nullptr ? t * s.batch : s.offsets[t];
  }
  FASTRNN_DEVICE int64_t before() const { return d == 0 ? t - 1 : t + 1; }
  FASTRNN_DEVICE int64_t after() const { return d == 0 ? t + 1 : t - 1; }
  // Positions of row n in [D, N, ...], [rows, D, ...] and [D, rows, ...].
  FASTRNN_DEVICE int64_t in_state(const Sizes& s, int n) const { return d * s.batch + n; }
  FASTRNN_DEVICE int64_t in_output(const Sizes& s, int n) const {
    return (first + n) * s.directions + d;
  }
  FASTRNN_DEVICE int64_t in_saved(const Sizes& s, int n) const { return d * s.rows + first + n; }
  // The same in the buffers that steps write and read in turn, [2, D, N, ...].
  FASTRNN_DEVICE int64_t in_turn(const Sizes& s, int64_t turn, int n) const {
    return turn % 2 * s.directions * s.batch + in_state(s, n);
  }
};

// Row n of the batch at a step; one outside the batch is not active.
class Row {
 protected:
  enum : uint32_t { kActive = 1, kContinues = 2, kBegins = 4, kEnds = 8, kComes = 16, kGoes = 32 };
  uint32_t flags_ = 0;

  FASTRNN_DEVICE static bool is_reset(const Sizes& s, int64_t t, int n) {
    return s.reset != nullptr && s.reset[t * s.batch + n];
  }

 public:
  const int n;

  FASTRNN_DEVICE Row(const Sizes& s, const Step& step, int n) : n(n) {
    // Loads that wait for nothing, not for each other either.
    const bool inside = n < s.batch;
    int64_t length = inside ? s.steps : 0;
    if (inside && s.lengths != nullptr && s.lengths[n] < length) length = s.lengths[n];
    const bool reset = inside && is_reset(s, step.t, n);
    const bool at_start = step.t == 0, at_end = step.t == length - 1;
    if (step.t >= length) return;
    flags_ = kActive;
    if (!reset) flags_ |= kContinues;
    if (step.d == 0 ? at_start : at_end) flags_ |= kBegins;
    if (step.d == 0 ? at_end : at_start) flags_ |= kEnds;
  }

  FASTRNN_DEVICE void drop() { flags_ = 0; }
  FASTRNN_DEVICE bool active() const { return flags_ & kActive; }
  // Whether the step starts from the state of the step before, or the initial one.
  FASTRNN_DEVICE bool continues() const { return flags_ & kContinues; }
  // Whether this is the row's first step, its last one.
  FASTRNN_DEVICE bool begins() const { return flags_ & kBegins; }
  FASTRNN_DEVICE bool ends() const { return flags_ & kEnds; }
};

// Stores h_t, where the next step, the output and the final state have it.
template <class T>
FASTRNN_DEVICE void write_state(const Forward& f, const Step& step, const Row& r, int unit,
                                Compute<T> h) {
  const Sizes& s = f.size;
  write<T>(f.h, step.in_turn(s, step.i + 1, r.n) * pitch<T>(s.state) + unit, h);
  write<T>(f.y, step.in_output(s, r.n) * s.state + unit, h);
  if (r.ends()) write<T>(f.h_n, step.in_state(s, r.n) * s.state + unit, h);
}

// The cell forward for one unit of a row.
template <class Cell, class T>
class ForwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  using V = Compute<T>;
  const Forward& f_;
  const Step& step_;
  const int unit_;
  Row row_;
  T bias_[G], x_[G];
  V kept_{};

 public:
  // Loads what does not depend on the step before. `n` is the row of the batch.
  FASTRNN_DEVICE ForwardCell(const Forward& f, const Step& step, int n, int unit)
      : f_(f), step_(step), unit_(unit), row_(f.size, step, n) {
    const Sizes& s = f.size;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g)
      bias_[g] =
          read<T>(f.b_hh, (step.d * G + g) * s.hidden + unit, f.b_hh != nullptr && unit < s.hidden);
    if (unit >= s.hidden) row_.drop();
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g)
      x_[g] = read<T>(f.x, (step.in_output(s, n) * G + g) * s.hidden + unit, row_.active());
  }

  // Loads what the step before wrote, but for its sums.
  FASTRNN_DEVICE void load_kept() {
    if (kKeeps<Cell> && row_.continues())
      kept_ = read_new<V>(f_.kept, step_.in_state(f_.size, row_.n) * f_.size.hidden + unit_);
  }

  // sum(g) is the product of the row with plane g.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    if (!row_.active()) return;
    const Sizes& s = f_.size;
    V x[G], u[G], saved[S > 0 ? S : 1];
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = to_compute(x_[g]);
      u[g] = (row_.continues() ? sum(g) : V{}) + to_compute(bias_[g]);
    }
    V h = kept_, c = kept_;
    Cell::forward(x, u, h, c, saved);
    const int64_t in_state = step_.in_state(s, row_.n), in_saved = step_.in_saved(s, row_.n);
    if constexpr (kKeeps<Cell>)
      static_cast<V*>(f_.kept)[in_state * s.hidden + unit_] = Cell::kKeepsC ? c : h;
    if (Cell::kKeepsC && f_.cells != nullptr) write<T>(f_.cells, in_saved * s.hidden + unit_, c);
    if (S > 0 && f_.gates != nullptr) {
      FASTRNN_UNROLL
      for (int g = 0; g < S; ++g)
        write<T>(f_.gates, (in_saved * S + g) * s.hidden + unit_, saved[g]);
    }
    if (f_.projected) {
      write<T>(f_.m, in_state * pitch<T>(s.hidden) + unit_, h);
      if (f_.hidden != nullptr) write<T>(f_.hidden, in_saved * s.hidden + unit_, h);
    } else {
      write_state<T>(f_, step_, row_, unit_, h);
    }
  }
};

// A step in the backward direction.
struct BackwardStep : Step {
  bool linked_after, linked_before;  // whether gradients cross the border to that neighbour

  FASTRNN_DEVICE BackwardStep(const Backward& b, int d, int64_t i)
      : Step(b.size, d, i), linked_after(linked(b, after())), linked_before(linked(b, before())) {}

 private:
  // Whether no multiple of detach_every separates t from its neighbour.
  FASTRNN_DEVICE bool linked(const Backward& b, int64_t other) const {
    const uint32_t later = static_cast<uint32_t>(t > other ? t : other);
    return b.detach_every == 0 || later % static_cast<uint32_t>(b.detach_every) != 0;
  }
};

struct BackwardRow : Row {
  FASTRNN_DEVICE BackwardRow(const Sizes& s, const BackwardStep& step, int n) : Row(s, step, n) {
    if (!active()) return;
    if (step.linked_after && !ends() && !is_reset(s, step.after(), n)) flags_ |= kComes;
    if (continues() && (step.linked_before || begins())) flags_ |= kGoes;
  }

  // Whether a gradient comes from the step after, goes to the step before.
  FASTRNN_DEVICE bool comes() const { return flags_ & kComes; }
  FASTRNN_DEVICE bool goes() const { return flags_ & kGoes; }
};

// Stores the gradient of h_t of a projected layer.
template <class T>
FASTRNN_DEVICE void write_state_gradient(const Backward& b, const Step& step, const Row& r,
                                         int unit, Compute<T> dh) {
  const Sizes& s = b.size;
  write<T>(b.sent_state, step.in_state(s, r.n) * pitch<T>(s.state) + unit, dh);
  write<T>(b.d_state, step.in_output(s, r.n) * s.state + unit, dh);
}

// The gradient of h_t for one unit of one row: of what the step after sends back, and of dy and
// dh_n, which the constructor loads.
template <class T>
class StateGradient {
  using V = Compute<T>;
  T dy_, dh_n_;

 public:
  FASTRNN_DEVICE StateGradient() {}
  FASTRNN_DEVICE StateGradient(const Backward& b, const Step& step, const Row& r, int unit) {
    const Sizes& s = b.size;
    dy_ = read<T>(b.dy, step.in_output(s, r.n) * s.state + unit, b.dy != nullptr && r.active());
    dh_n_ = read<T>(b.dh_n, step.in_state(s, r.n) * s.state + unit, b.dh_n != nullptr && r.ends());
  }
  // sent: through w_hh, direct: besides.
  FASTRNN_DEVICE V complete(const Backward& b, V sent, V direct) const {
    V dh = sent + direct;
    if (b.grad_clip != 0) {
      const V limit = static_cast<V>(b.grad_clip);
      dh = dh > limit ? limit : dh;  // a NaN stays
      dh = dh < -limit ? -limit : dh;
    }
    return dh + to_compute(dy_) + to_compute(dh_n_);
  }
};

// The cell backward for one unit of a row, the mirror of ForwardCell.
template <class Cell, class T>
class BackwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  using V = Compute<T>;
  const Backward& b_;
  const BackwardStep& step_;
  const int unit_;
  BackwardRow row_;
  StateGradient<T> state_;
  T saved_[S > 0 ? S : 1];
  T before_, now_;  // c, or h of a cell without c, before the step and after
  T dc_;
  V kept_{};

 public:
  FASTRNN_DEVICE BackwardCell(const Backward& b, const BackwardStep& step, int n, int unit)
      : b_(b), step_(step), unit_(unit), row_(b.size, step, n) {
    if (unit >= b.size.hidden) row_.drop();
    if (!b.projected) state_ = StateGradient<T>(b, step, row_, unit);
    load_saved();
  }

  FASTRNN_DEVICE void load_kept() {
    if (kKeeps<Cell> && row_.active())
      kept_ = read_new<V>(b_.d_kept, step_.in_state(b_.size, row_.n) * b_.size.hidden + unit_);
  }

  // sum() is the product of the row: du w_hh, or d_state w_hr.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    if (!row_.active()) return;
    V dh = b_.projected || row_.comes() ? sum() : V{};
    if (!b_.projected) dh = state_.complete(b_, dh, Cell::kKeepsH ? kept_ : V{});
    const Sizes& s = b_.size;
    const V before = to_compute(before_), now = to_compute(now_);
    V saved[S > 0 ? S : 1], dx[G], du[G];
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g) saved[g] = to_compute(saved_[g]);
    V dc = to_compute(dc_) + (Cell::kKeepsC ? kept_ : V{});
    const V dh_prev = Cell::backward(saved, before, now, before, now, dh, dc, dx, du);
    if constexpr (kKeeps<Cell>)
      static_cast<V*>(b_.d_kept)[step_.in_state(s, row_.n) * s.hidden + unit_] =
          row_.goes() ? (Cell::kKeepsC ? dc : dh_prev) : V{};
    const int64_t sent = step_.in_turn(s, step_.i, row_.n) * pitch<T>(G * s.hidden) + unit_;
    const int64_t out = step_.in_output(s, row_.n) * G * s.hidden + unit_;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      write<T>(b_.sent, sent + g * s.hidden, du[g]);
      write<T>(b_.du, out + g * s.hidden, du[g]);
      if (Cell::kSplit) write<T>(b_.dx, out + g * s.hidden, dx[g]);
    }
  }

 private:
  // The row at which those of the step before begin; of no meaning for rows that begin here.
  FASTRNN_DEVICE int64_t earlier_row() const {
    const int64_t t = step_.before();
    return t >= 0 && t < b_.size.steps ? Step::first_row(b_.size, t) : 0;
  }

  // What forward left: the saved planes, the states before and after the step.
  FASTRNN_DEVICE void load_saved() {
    const Sizes& s = b_.size;
    const int64_t H = s.hidden, saved = step_.in_saved(s, row_.n);
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g)
      saved_[g] = read<T>(b_.gates, (saved * S + g) * H + unit_, row_.active());
    now_ = Cell::kKeepsC ? read<T>(b_.cells, saved * H + unit_, row_.active())
                         : read<T>(b_.y, step_.in_output(s, row_.n) * H + unit_,
                                   !Cell::kKeepsH && row_.active());
    dc_ = read<T>(b_.d_cells, saved * H + unit_,
                  Cell::kKeepsC && b_.d_cells != nullptr && row_.active());
    Step earlier = step_;
    earlier.first = kKeeps<Cell> ? earlier_row() : 0;
    const int64_t at = row_.begins()   ? step_.in_state(s, row_.n)
                       : Cell::kKeepsC ? earlier.in_saved(s, row_.n)
                                       : earlier.in_output(s, row_.n);
    const void* const initial = Cell::kKeepsC ? b_.c0 : b_.h0;
    before_ = read<T>(row_.begins()   ? initial
                      : Cell::kKeepsC ? b_.cells
                                      : b_.y,
                      at * H + unit_, kKeeps<Cell> && row_.continues());
  }
};

}  // namespace fastrnn::cuda
