// A layer of one time step or a few. Packing its weights would take longer than it saves: they are
// read as they lie, each row of a weight in a dot product of its own.
#pragma once

#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

// Dot products of R vectors with kLanes rows of a matrix, which is read as it lies: one in each
// lane.
template <class T, int R>
class Dots {
  using V = Vec<T>;
  static constexpr int kLane = kLanes<T>;
  static constexpr int kColumns = R == 1 ? kLane : kLane < 4 ? kLane : 4;  // at a time
  V sum_[R][kLane] = {};

 public:
  // The most vectors that leave all sums in registers.
  static constexpr int kMost = kAccumulators / 4;

  // Adds the products of x[r] [k] with the rows of w, `ld` apart, of which the first `valid` exist.
  template <class W, class X>
  FASTRNN_INLINE void add(const W* w, int64_t ld, int64_t valid, const X* const* x, int64_t k) {
    if (valid == 0) return;
    for (int c = 0; c < kLane; c += kColumns) {
      const W* row[kColumns];
      for (int l = 0; l < kColumns; ++l) row[l] = w + min(c + l, valid - 1) * ld;
      V acc[R][kColumns];
      each([&](int r, int l) { acc[r][l] = sum_[r][c + l]; });
      int64_t i = 0;
      for (; i + kLane <= k; i += kLane)
        each([&](int r, int l) {
          acc[r][l] = fma(load<V>(x[r] + i), load<V>(row[l] + i), acc[r][l]);
        });
      if (i < k) {
        V rest[R];
        for (int r = 0; r < R; ++r) rest[r] = load_part<V>(x[r] + i, k - i);
        each([&](int r, int l) {
          if (c + l < valid) acc[r][l] = fma(rest[r], load_part<V>(row[l] + i, k - i), acc[r][l]);
        });
      }
      each([&](int r, int l) { sum_[r][c + l] = acc[r][l]; });
    }
  }

  // What has been added up for vector r.
  FASTRNN_INLINE V total(int r) {
    V* const sum = sum_[r];
    transpose<T>(sum_[r]);
    FASTRNN_UNROLL
    for (int width = kLane / 2; width > 0; width /= 2) {
      FASTRNN_UNROLL
      for (int l = 0; l < width; ++l) sum[l] += sum[l + width];
    }
    return sum[0];
  }

 private:
  template <class F>
  FASTRNN_INLINE static void each(F&& body) {
    FASTRNN_UNROLL
    for (int r = 0; r < R; ++r) {
      FASTRNN_UNROLL
      for (int l = 0; l < kColumns; ++l) body(r, l);
    }
  }
};

template <class Cell, class Stored>
class FewSteps : Layer<Cell, Stored> {
  using Base = Layer<Cell, Stored>;
  using Base::D, Base::f, Base::G, Base::H, Base::I, Base::ld_cell, Base::N, Base::P,
      Base::parallel, Base::s, Base::S;
  using typename Base::T;
  using typename Base::V;
  static constexpr int64_t kBlock = 24;  // rows that pass a gate's weights together
  static constexpr int64_t kFew = 4;     // steps

  const int64_t ld_;     // of inputs_
  Buffer<T> inputs_;     // [D, T N, G, ld_] input parts of the pre-activations, for several steps
  Buffer<T> m_;          // [D, N, ld_cell] o tanh(c), before the projection
  Buffer<Stored> zero_;  // [P] a state of zero
  bool up_;              // the order of directions and units

  // The other way each time: of weights as large as the cache, what was read last is still there.
  static bool other_way() {
    static thread_local bool up = false;
    return up = !up;
  }

 public:
  // One step: for more rows than these packing pays (H = 256: direct takes 0.33 of the time at
  // N = 1, 0.75 at 8, 1.18 at 64). Several: of one row, whose state is not rounded in between.
  // There direct takes 0.3 to 0.9 of the time at T = 2, 0.4 to 1 at 4, and at 8 0.7 to 1.05 if
  // the weights are large. Sums are rounded differently in the two ways.
  static bool suits(const Sizes& size) {
    if (size.order != nullptr) return false;
    if (size.steps == 1) return size.batch <= 32;
    const int64_t weights = G * size.hidden * (size.input + size.state);
    const int64_t most = weights * int64_t{sizeof(Stored)} <= kNearBytes ? kFew : 2 * kFew;
    return size.steps <= most && size.batch == 1 && std::is_same_v<Stored, T>;
  }

  FewSteps(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads),
        ld_(round_up(H, kLanes<T>)),
        inputs_(s.steps > 1 ? D * s.rows * G * ld_ : 0),
        m_(s.projected ? D * N * ld_cell : 0),
        zero_(f.reset ? P : 0),
        up_(other_way()) {}

  void operator()() {
    if (f.reset) memset(zero_, 0, P * sizeof(Stored));
    if (s.steps > 1) each_register(H, [&](int64_t d, Lane<T> lane) { input_parts(d, lane); });
    for (int64_t i = 0; i < s.steps; ++i, up_ = !up_) {
      each_register(H, [&](int64_t d, Lane<T> lane) { step(d, i, lane); });
      if (s.projected) each_register(P, [&](int64_t d, Lane<T> lane) { project(d, i, lane); });
    }
  }

 private:
  // body(direction, lane) for every register of `columns` columns, shared out to the threads.
  template <class F>
  void each_register(int64_t columns, F&& body) {
    run(parallel, D * parallel.threads, [&](int64_t task) {
      const Range range = piece(columns, task / D, parallel.threads, kLanes<T>);
      const int64_t count = ceil_div(range.count(), kLanes<T>);
      const int64_t d = up_ ? task % D : D - 1 - task % D;
      for (int64_t i = 0; i < count; ++i)
        body(d, Lane<T>(range.first + (up_ ? i : count - 1 - i) * kLanes<T>, columns));
    });
  }

  // body(first, R) for the rows of a range, R at a time, R a constant.
  template <class F>
  static void each_tile(Range range, F&& body) {
    constexpr int kMost = Dots<T, 1>::kMost;
    int64_t n = range.first;
    for (; n + kMost <= range.last; n += kMost) body(n, std::integral_constant<int, kMost>{});
    for (; n < range.last; ++n) body(n, std::integral_constant<int, 1>{});
  }

  // The sum of what the biases add to a gate's input part.
  V bias(int64_t d, int64_t g, Lane<T> lane) const {
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    if (!w.b_ih) return V{};
    const V b_ih = lane.load_from(w.b_ih + g * H);
    return Cell::kSplit ? b_ih : b_ih + lane.load_from(w.b_hh + g * H);
  }

  T* input_part(int64_t d, int64_t row, int64_t g, Lane<T> lane) {
    return inputs_ + ((d * s.rows + row) * G + g) * ld_ + lane.at;
  }

  // W_ih x + bias of a register of units, in all steps.
  void input_parts(int64_t d, Lane<T> lane) {
    for (int64_t g = 0; g < G; ++g) {
      const V b = bias(d, g, lane);
      each_tile({0, s.rows}, [&](int64_t first, auto tile_rows) {
        constexpr int R = tile_rows;
        const Stored* x[R];
        for (int r = 0; r < R; ++r) x[r] = f.x + (first + r) * I;
        Dots<T, R> dots;
        dots.add(f.weights[d].w_ih + (g * H + lane.at) * I, I, lane.valid, x, I);
        for (int r = 0; r < R; ++r) store<V>(input_part(d, first + r, g, lane), dots.total(r) + b);
      });
    }
  }

  // A step of a register of units, all gates, all batch rows. Those of a block meet a gate's
  // weights while these are in the first-level cache.
  void step(int64_t d, int64_t i, Lane<T> lane) {
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    const int64_t from = this->row(d, i);
    V x_part[kBlock][G], u_part[kBlock][G];
    for (int64_t block = 0; block < N; block += kBlock) {
      const int64_t last = min(N, block + kBlock);
      for (int64_t g = 0; g < G; ++g) {
        const int64_t row = g * H + lane.at;
        const V b = s.steps > 1 ? V{} : bias(d, g, lane);
        const V b_hh = Cell::kSplit && w.b_hh ? lane.load_from(w.b_hh + g * H) : V{};
        each_tile({block, last}, [&](int64_t first, auto tile_rows) {
          constexpr int R = tile_rows;
          const Stored *x[R], *h[R];
          for (int r = 0; r < R; ++r) {
            x[r] = f.x + (from + first + r) * I;
            h[r] = h_before(d, i, first + r);
          }
          Dots<T, R> x_dots, u_dots;
          if (s.steps == 1) x_dots.add(w.w_ih + row * I, I, lane.valid, x, I);
          (Cell::kSplit ? u_dots : x_dots).add(w.w_hh + row * P, P, lane.valid, h, P);
          for (int r = 0; r < R; ++r) {
            const int64_t n = first - block + r;
            const V before = s.steps > 1 ? load<V>(input_part(d, from + first + r, g, lane)) : b;
            x_part[n][g] = Cell::kSplit && s.steps > 1 ? before : x_dots.total(r) + before;
            u_part[n][g] = Cell::kSplit ? u_dots.total(r) + b_hh : V{};
          }
        });
      }
      for (int64_t n = block; n < last; ++n)
        cell(d, i, n, lane, x_part[n - block], u_part[n - block]);
    }
  }

  bool reset(int64_t d, int64_t i, int64_t n) const {
    return f.reset && f.reset[this->row(d, i) + n];
  }
  const Stored* h_before(int64_t d, int64_t i, int64_t n) const {
    return reset(d, i, n) ? zero_
           : i == 0       ? f.h0 + (d * N + n) * P
                          : f.y + this->at_y(d, this->row(d, i - 1) + n);
  }

  void cell(int64_t d, int64_t i, int64_t n, Lane<T> lane, const V* x, const V* u) {
    const int64_t at = (d * N + n) * H, row = this->row(d, i) + n;
    V saved[S > 0 ? S : 1], c{}, h{};
    if (!s.projected) h = lane.load_from(h_before(d, i, n));
    if constexpr (Cell::kKeepsC)
      if (!reset(d, i, n)) c = lane.load_from((i == 0 ? f.c0 : f.c_n) + at);
    Cell::forward(x, u, h, c, saved);
    if constexpr (Cell::kKeepsC) lane.store_to(f.c_n + at, c);
    if (f.save) this->save(d, row, lane, saved, c, h);
    if (s.projected) {
      store<V>(m_ + (d * N + n) * ld_cell + lane.at, h);
    } else {
      lane.store_to(f.h_n + at, h);
      lane.store_to(f.y + this->at_y(d, row), h);
    }
  }

  void project(int64_t d, int64_t i, Lane<T> lane) {
    each_tile({0, N}, [&](int64_t first, auto tile_rows) {
      constexpr int R = tile_rows;
      const T* m[R];
      for (int r = 0; r < R; ++r) m[r] = m_ + (d * N + first + r) * ld_cell;
      Dots<T, R> dots;
      dots.add(f.weights[d].w_hr + lane.at * H, H, lane.valid, m, H);
      for (int r = 0; r < R; ++r) {
        const int64_t n = first + r;
        const V h = dots.total(r);
        lane.store_to(f.h_n + (d * N + n) * P, h);
        lane.store_to(f.y + this->at_y(d, this->row(d, i) + n), h);
      }
    });
  }
};

}  // namespace FASTRNN_NAMESPACE
