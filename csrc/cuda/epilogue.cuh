// What follows the product of a step: the cell, forward and backward, for a thread that has one
// unit of some rows. Loads of what no step of the loop writes come first, and stay as they lie
// until they are needed, so that they are under way while the product is made.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/steps.h"

namespace fastrnn::cuda {

// Whether the cell keeps a wide state from step to step: c, or h itself (steps.h).
template <class Cell>
inline constexpr bool kKeeps = Cell::kState || Cell::kReadsH;

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
  template <class R, class RowOf>
  friend class Rows;

  FASTRNN_DEVICE static bool is_reset(const Sizes& s, int64_t t, int n) {
    return s.reset != nullptr && s.reset[t * s.batch + n];
  }

 public:
  int n = 0;

  FASTRNN_DEVICE Row() {}
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

// Up to four rows of class R, in one register. RowOf has their places in the batch.
template <class R, class RowOf>
class Rows {
  const RowOf& row_of_;
  uint32_t flags_ = 0;

 public:
  FASTRNN_DEVICE explicit Rows(const RowOf& row_of) : row_of_(row_of) {}
  FASTRNN_DEVICE void set(int k, const R& row) { flags_ |= row.flags_ << 8 * k; }
  FASTRNN_DEVICE R operator[](int k) const {
    R row;
    row.n = row_of_(k);
    row.flags_ = flags_ >> 8 * k & 0xff;
    return row;
  }
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

// The cell forward for one unit of kCount rows.
template <class Cell, class T, int kCount, class RowOf>
class ForwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  static_assert(kCount <= 4);
  using V = Compute<T>;
  const Forward& f_;
  const Step& step_;
  const int unit_;
  Rows<Row, RowOf> rows_;
  T bias_[G], x_[kCount][G];
  V kept_[kCount];

 public:
  // Loads what does not depend on the step before. row_of(k) is the k'th row of the batch.
  FASTRNN_DEVICE ForwardCell(const Forward& f, const Step& step, int unit, const RowOf& row_of)
      : f_(f), step_(step), unit_(unit), rows_(row_of) {
    const Sizes& s = f.size;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g)
      bias_[g] =
          read<T>(f.b_hh, (step.d * G + g) * s.hidden + unit, f.b_hh != nullptr && unit < s.hidden);
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      Row r(s, step, row_of(k));
      if (unit >= s.hidden) r.drop();
      rows_.set(k, r);
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g)
        x_[k][g] = read<T>(f.x, (step.in_output(s, r.n) * G + g) * s.hidden + unit, r.active());
    }
  }

  // Loads what the step before wrote, but for its sums.
  FASTRNN_DEVICE void load_kept() {
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      kept_[k] = V{};
      if (kKeeps<Cell> && rows_[k].continues())
        kept_[k] =
            read_new<V>(f_.kept, step_.in_state(f_.size, rows_[k].n) * f_.size.hidden + unit_);
    }
  }

  // sum(k, g) is the product of row k.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k)
      if (rows_[k].active()) finish(k, rows_[k], sum);
  }

 private:
  template <class SumOf>
  FASTRNN_DEVICE void finish(int k, const Row& r, SumOf sum) {
    const Sizes& s = f_.size;
    V x[G], u[G], saved[S > 0 ? S : 1];
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = to_compute(x_[k][g]);
      u[g] = (r.continues() ? sum(k, g) : V{}) + to_compute(bias_[g]);
    }
    V h = kept_[k], c = kept_[k];
    Cell::forward(x, u, h, c, saved);
    const int64_t in_state = step_.in_state(s, r.n), in_saved = step_.in_saved(s, r.n);
    if constexpr (kKeeps<Cell>)
      static_cast<V*>(f_.kept)[in_state * s.hidden + unit_] = Cell::kState ? c : h;
    if (Cell::kState && f_.cells != nullptr) write<T>(f_.cells, in_saved * s.hidden + unit_, c);
    if (S > 0 && f_.gates != nullptr) {
      FASTRNN_UNROLL
      for (int g = 0; g < S; ++g)
        write<T>(f_.gates, (in_saved * S + g) * s.hidden + unit_, saved[g]);
    }
    if (f_.projected) {
      write<T>(f_.m, in_state * pitch<T>(s.hidden) + unit_, h);
      if (f_.hidden != nullptr) write<T>(f_.hidden, in_saved * s.hidden + unit_, h);
    } else {
      write_state<T>(f_, step_, r, unit_, h);
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
  FASTRNN_DEVICE BackwardRow() {}
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

// The cell backward for one unit of kCount rows, the mirror of ForwardCell.
template <class Cell, class T, int kCount, class RowOf>
class BackwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  static_assert(kCount <= 4);
  using V = Compute<T>;
  const Backward& b_;
  const BackwardStep& step_;
  const int unit_;
  Rows<BackwardRow, RowOf> rows_;
  StateGradient<T> state_[kCount];
  T saved_[kCount][S > 0 ? S : 1];
  T before_[kCount], now_[kCount];  // c, or h of a cell without c, before the step and after
  T dc_[kCount];
  V kept_[kCount];

 public:
  FASTRNN_DEVICE BackwardCell(const Backward& b, const BackwardStep& step, int unit,
                              const RowOf& row_of)
      : b_(b), step_(step), unit_(unit), rows_(row_of) {
    const int64_t earlier = kKeeps<Cell> ? earlier_row() : 0;
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      BackwardRow r(b.size, step, row_of(k));
      if (unit >= b.size.hidden) r.drop();
      rows_.set(k, r);
      if (!b.projected) state_[k] = StateGradient<T>(b, step, r, unit);
      load_saved(k, r, earlier);
    }
  }

  FASTRNN_DEVICE void load_kept() {
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      kept_[k] = V{};
      if (kKeeps<Cell> && rows_[k].active())
        kept_[k] =
            read_new<V>(b_.d_kept, step_.in_state(b_.size, rows_[k].n) * b_.size.hidden + unit_);
    }
  }

  // sum(k) is the product of row k: du w_hh, or d_state w_hr.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    FASTRNN_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const BackwardRow r = rows_[k];
      if (!r.active()) continue;
      V dh = b_.projected || r.comes() ? sum(k) : V{};
      if (!b_.projected) dh = state_[k].complete(b_, dh, Cell::kReadsH ? kept_[k] : V{});
      finish(k, r, dh);
    }
  }

 private:
  // The row at which those of the step before begin; of no meaning for rows that begin here.
  FASTRNN_DEVICE int64_t earlier_row() const {
    const int64_t t = step_.before();
    return t >= 0 && t < b_.size.steps ? Step::first_row(b_.size, t) : 0;
  }

  // What forward left: the saved planes, the states before and after the step.
  FASTRNN_DEVICE void load_saved(int k, const Row& r, int64_t earlier_row) {
    const Sizes& s = b_.size;
    const int64_t H = s.hidden, saved = step_.in_saved(s, r.n);
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g)
      saved_[k][g] = read<T>(b_.gates, (saved * S + g) * H + unit_, r.active());
    now_[k] = Cell::kState ? read<T>(b_.cells, saved * H + unit_, r.active())
                           : read<T>(b_.y, step_.in_output(s, r.n) * H + unit_,
                                     !Cell::kReadsH && r.active());
    dc_[k] =
        read<T>(b_.d_cells, saved * H + unit_, Cell::kState && b_.d_cells != nullptr && r.active());
    Step earlier = step_;
    earlier.first = earlier_row;
    const int64_t at = r.begins()     ? step_.in_state(s, r.n)
                       : Cell::kState ? earlier.in_saved(s, r.n)
                                      : earlier.in_output(s, r.n);
    const void* const initial = Cell::kState ? b_.c0 : b_.h0;
    before_[k] = read<T>(r.begins()     ? initial
                         : Cell::kState ? b_.cells
                                        : b_.y,
                         at * H + unit_, kKeeps<Cell> && r.continues());
  }

  FASTRNN_DEVICE void finish(int k, const BackwardRow& r, V dh) {
    const Sizes& s = b_.size;
    const V before = to_compute(before_[k]), now = to_compute(now_[k]);
    V saved[S > 0 ? S : 1], dx[G], du[G];
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g) saved[g] = to_compute(saved_[k][g]);
    V dc = to_compute(dc_[k]) + (Cell::kState ? kept_[k] : V{});
    const V dh_prev = Cell::backward(saved, before, now, before, now, dh, dc, dx, du);
    if constexpr (kKeeps<Cell>)
      static_cast<V*>(b_.d_kept)[step_.in_state(s, r.n) * s.hidden + unit_] =
          r.goes() ? (Cell::kState ? dc : dh_prev) : V{};
    const int64_t sent = step_.in_turn(s, step_.i, r.n) * pitch<T>(G * s.hidden) + unit_;
    const int64_t out = step_.in_output(s, r.n) * G * s.hidden + unit_;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      write<T>(b_.sent, sent + g * s.hidden, du[g]);
      write<T>(b_.du, out + g * s.hidden, du[g]);
      if (Cell::kSplit) write<T>(b_.dx, out + g * s.hidden, dx[g]);
    }
  }
};

}  // namespace fastrnn::cuda
