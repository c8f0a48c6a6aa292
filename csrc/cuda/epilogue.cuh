// What follows the product of a step: the cell, forward and backward, for a thread that has one
// unit of one row. Loads of what no step of the loop writes come first, and stay as they lie
// until they are needed, so that they are under way while the product is made. Kernels differ in
// how a step gets the state and the sums of the step before.
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

 public:
  int n;

  // Loads that wait for nothing, not for each other either.
  FASTRNN_DEVICE Row(const Sizes& s, const Step& step, int n)
      : Row(step, n, length(s, n), is_reset(s, step.t, n)) {}
  // Of numbers that were loaded before.
  FASTRNN_DEVICE Row(const Step& step, int n, int64_t length, bool reset) : n(n) {
    const bool at_start = step.t == 0, at_end = step.t == length - 1;
    if (step.t < 0 || step.t >= length) return;
    flags_ = kActive;
    if (!reset) flags_ |= kContinues;
    if (step.d == 0 ? at_start : at_end) flags_ |= kBegins;
    if (step.d == 0 ? at_end : at_start) flags_ |= kEnds;
  }

  // Times of row n, 0 outside of the batch.
  FASTRNN_DEVICE static int64_t length(const Sizes& s, int n) {
    int64_t length = n < s.batch ? s.steps : 0;
    if (n < s.batch && s.lengths != nullptr && s.lengths[n] < length) length = s.lengths[n];
    return length;
  }
  FASTRNN_DEVICE static bool is_reset(const Sizes& s, int64_t t, int n) {
    return s.reset != nullptr && n < s.batch && s.reset[t * s.batch + n];
  }

  FASTRNN_DEVICE void drop() { flags_ = 0; }
  FASTRNN_DEVICE bool active() const { return flags_ & kActive; }
  // Whether the step starts from the state of the step before, or the initial one.
  FASTRNN_DEVICE bool continues() const { return flags_ & kContinues; }
  // Whether this is the row's first step, its last one.
  FASTRNN_DEVICE bool begins() const { return flags_ & kBegins; }
  FASTRNN_DEVICE bool ends() const { return flags_ & kEnds; }
};

// Stores h_t, where the next launch has it.
template <class T>
FASTRNN_DEVICE void hand_on(const Forward& f, const Step& step, const Row& r, int unit,
                            Compute<T> h) {
  write<T>(f.h, step.in_turn(f.size, step.i + 1, r.n) * pitch<T>(f.size.state) + unit, h);
}
// Stores h_t, where the output and the final state have it.
template <class T>
FASTRNN_DEVICE void write_state(const Forward& f, const Step& step, const Row& r, int unit,
                                Compute<T> h) {
  const Sizes& s = f.size;
  write<T>(f.y, step.in_output(s, r.n) * s.state + unit, h);
  if (r.ends()) write<T>(f.h_n, step.in_state(s, r.n) * s.state + unit, h);
}

// A step of the cell forward for one unit of a row.
template <class Cell, class T>
class ForwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  using V = Compute<T>;
  T x_[G];

 public:
  struct Bias {
    T of[G];
  };
  // What a step makes. `kept` is what the cell keeps for the next one.
  struct Made {
    V h, c, saved[S > 0 ? S : 1];
    FASTRNN_DEVICE V kept() const { return Cell::kKeepsC ? c : h; }
  };

  // Of b_hh, the same at every step.
  FASTRNN_DEVICE static Bias load_bias(const Forward& f, int d, int unit) {
    const bool inside = f.b_hh != nullptr && unit < f.size.hidden;
    Bias bias;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g)
      bias.of[g] = read<T>(f.b_hh, (d * G + g) * f.size.hidden + unit, inside);
    return bias;
  }

  // Loads x, which does not depend on the step before. `n` is the row of the batch.
  FASTRNN_DEVICE void load(const Forward& f, const Step& step, int n, int unit, bool inside) {
    const int hidden = static_cast<int>(f.size.hidden);
    const T* const x = static_cast<const T*>(f.x) + step.in_output(f.size, n) * G * hidden + unit;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) x_[g] = read<T>(x, g * hidden, inside);
  }

  // sum(g) is the product of the row with plane g, `kept` what the step before made.
  template <class SumOf>
  FASTRNN_DEVICE Made run(const Row& row, const Bias& bias, V kept, SumOf sum) const {
    using A = Arithmetic<T>;
    A x[G], u[G], h = row.continues() ? kept : V{}, c = h, saved[S > 0 ? S : 1];
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      x[g] = to_compute(x_[g]);
      u[g] = (row.continues() ? sum(g) : V{}) + to_compute(bias.of[g]);
    }
    Cell::forward(x, u, h, c, saved);
    Made made{h, c, {}};
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g) made.saved[g] = saved[g];
    return made;
  }

  // Stores what backward needs, if it is wanted.
  FASTRNN_DEVICE static void save(const Forward& f, const Step& step, const Row& row, int unit,
                                  const Made& made) {
    const Sizes& s = f.size;
    const int64_t in_saved = step.in_saved(s, row.n);
    if (Cell::kKeepsC && f.cells != nullptr) write<T>(f.cells, in_saved * s.hidden + unit, made.c);
    if (S > 0 && f.gates != nullptr) {
      const int hidden = static_cast<int>(s.hidden);
      T* const gates = static_cast<T*>(f.gates) + in_saved * S * hidden + unit;
      FASTRNN_UNROLL
      for (int g = 0; g < S; ++g) write<T>(gates, g * hidden, made.saved[g]);
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
  FASTRNN_DEVICE BackwardRow(const Sizes& s, const BackwardStep& step, int n)
      : BackwardRow(step, Row(s, step, n), is_reset_after(s, step, n)) {}
  // Of numbers that were loaded before; `reset_after` is that of the step after.
  FASTRNN_DEVICE BackwardRow(const BackwardStep& step, const Row& row, bool reset_after)
      : Row(row) {
    if (!active()) return;
    if (step.linked_after && !ends() && !reset_after) flags_ |= kComes;
    if (continues() && (step.linked_before || begins())) flags_ |= kGoes;
  }
  FASTRNN_DEVICE static bool is_reset_after(const Sizes& s, const BackwardStep& step, int n) {
    const int64_t t = step.after();
    return t >= 0 && t < s.steps && is_reset(s, t, n);
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

// A step of the cell backward for one unit of a row, the mirror of ForwardCell.
template <class Cell, class T>
class BackwardCell {
  static constexpr int G = Cell::kGates, S = Cell::kSaved;
  using V = Compute<T>;
  StateGradient<T> state_;
  T saved_[S > 0 ? S : 1];
  T before_, now_;  // c, or h of a cell without c, before the step and after
  T dc_;

 public:
  struct Made {
    V kept;  // the gradient of what the step before kept, without what goes through w_hh
    V dx[G], du[G];
  };

  // Loads what no step of the loop writes; whether the row was reset plays no part.
  FASTRNN_DEVICE void load(const Backward& b, const BackwardStep& step, const Row& row, int unit) {
    if (!b.projected) state_ = StateGradient<T>(b, step, row, unit);
    const Sizes& s = b.size;
    const int64_t saved = step.in_saved(s, row.n);
    const int H = static_cast<int>(s.hidden);
    const T* const gates = static_cast<const T*>(b.gates) + saved * S * H + unit;
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g) saved_[g] = read<T>(gates, g * H, row.active());
    now_ = Cell::kKeepsC
               ? read<T>(b.cells, saved * H + unit, row.active())
               : read<T>(b.y, step.in_output(s, row.n) * H + unit, !Cell::kKeepsH && row.active());
    dc_ =
        read<T>(b.d_cells, saved * H + unit, Cell::kKeepsC && b.d_cells != nullptr && row.active());
    Step earlier = step;
    earlier.first = kKeeps<Cell> ? earlier_row(s, step) : 0;
    const int64_t at = row.begins()    ? step.in_state(s, row.n)
                       : Cell::kKeepsC ? earlier.in_saved(s, row.n)
                                       : earlier.in_output(s, row.n);
    const void* const initial = Cell::kKeepsC ? b.c0 : b.h0;
    before_ = read<T>(row.begins()    ? initial
                      : Cell::kKeepsC ? b.cells
                                      : b.y,
                      at * H + unit, kKeeps<Cell> && row.active());
  }

  // sum() is the product of the row: du w_hh, or d_state w_hr; `kept` what the step after made.
  template <class SumOf>
  FASTRNN_DEVICE Made run(const Backward& b, const BackwardRow& row, V kept, SumOf sum) const {
    V dh = b.projected || row.comes() ? sum() : V{};
    if (!b.projected) dh = state_.complete(b, dh, Cell::kKeepsH ? kept : V{});
    const V before = row.continues() ? to_compute(before_) : V{}, now = to_compute(now_);
    V saved[S > 0 ? S : 1];
    FASTRNN_UNROLL
    for (int g = 0; g < S; ++g) saved[g] = to_compute(saved_[g]);
    V dc = to_compute(dc_) + (Cell::kKeepsC ? kept : V{});
    Made made{};
    const V dh_prev = Cell::backward(saved, before, now, before, now, dh, dc, made.dx, made.du);
    made.kept = row.goes() ? (Cell::kKeepsC ? dc : dh_prev) : V{};
    return made;
  }

  // Stores the gradients of x and u.
  FASTRNN_DEVICE static void write_gradients(const Backward& b, const Step& step, const Row& row,
                                             int unit, const Made& made) {
    const int hidden = static_cast<int>(b.size.hidden);
    const int64_t out = step.in_output(b.size, row.n) * G * hidden + unit;
    T* const du = static_cast<T*>(b.du) + out;
    T* const dx = Cell::kSplit ? static_cast<T*>(b.dx) + out : nullptr;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) {
      write<T>(du, g * hidden, made.du[g]);
      if (Cell::kSplit) write<T>(dx, g * hidden, made.dx[g]);
    }
  }

 private:
  // The row at which those of the step before begin; of no meaning for rows that begin here.
  FASTRNN_DEVICE static int64_t earlier_row(const Sizes& s, const Step& step) {
    const int64_t t = step.before();
    return t >= 0 && t < s.steps ? Step::first_row(s, t) : 0;
  }
};

}  // namespace fastrnn::cuda
