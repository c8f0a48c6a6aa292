// A layer of a single time step. Its weights are used once, so packing them would take longer than
// the step: they are read as they lie, each row of a weight in a dot product of its own.
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
        each([&](int r, int l) { acc[r][l] += load<V>(x[r] + i) * load<V>(row[l] + i); });
      if (i < k)
        each([&](int r, int l) {
          acc[r][l] += load_part<V>(x[r] + i, k - i) * load_part<V>(row[l] + i, k - i);
        });
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
class SingleStep : Layer<Cell, Stored> {
  using Base = Layer<Cell, Stored>;
  using Base::D, Base::f, Base::G, Base::H, Base::I, Base::ld_cell, Base::N, Base::P,
      Base::parallel, Base::s, Base::S;
  using typename Base::T;
  using typename Base::V;
  static constexpr int64_t kBlock = 24;  // batch rows that pass a gate's weights together

  Buffer<T> m_;          // [D, N, ld_cell] o tanh(c), before the projection
  Buffer<Stored> zero_;  // [P] a state of zero
  const bool up_;        // the order of directions and units

  // The other way each time: of weights as large as the cache, what was read last is still there.
  static bool other_way() {
    static thread_local bool up = false;
    return up = !up;
  }

 public:
  // For more rows than these packing pays (H = 256: direct takes 0.33 of the time at N = 1, 0.75 at
  // 8, 1.18 at 64). Sums are rounded differently in the two ways.
  static bool suits(const Sizes& size) {
    return size.steps == 1 && size.batch <= 32 && size.order == nullptr;
  }

  SingleStep(const fastrnn::Forward<Stored>& forward, const Parallel& threads)
      : Base(forward, threads),
        m_(s.projected ? D * N * ld_cell : 0),
        zero_(f.reset ? P : 0),
        up_(other_way()) {}

  void operator()() {
    if (f.reset) memset(zero_, 0, P * sizeof(Stored));
    each_register(H, [&](int64_t d, Lane<T> lane) { step(d, lane); });
    if (s.projected) each_register(P, [&](int64_t d, Lane<T> lane) { project(d, lane); });
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

  // body(first, R) for the batch rows of a range, R at a time, R a constant.
  template <class F>
  static void each_tile(Range range, F&& body) {
    constexpr int kMost = Dots<T, 1>::kMost;
    int64_t n = range.first;
    for (; n + kMost <= range.last; n += kMost) body(n, std::integral_constant<int, kMost>{});
    for (; n < range.last; ++n) body(n, std::integral_constant<int, 1>{});
  }

  // A register of units, all gates, all batch rows. Those of a block meet a gate's weights while
  // these are in the first-level cache.
  void step(int64_t d, Lane<T> lane) {
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    const auto bias = [&](const Stored* b, int64_t g) {
      return b ? lane.load_from(b + g * H) : V{};
    };
    V x_part[kBlock][G], u_part[kBlock][G];
    for (int64_t block = 0; block < N; block += kBlock) {
      const int64_t last = min(N, block + kBlock);
      for (int64_t g = 0; g < G; ++g) {
        const int64_t row = g * H + lane.at;
        const V b_ih = bias(w.b_ih, g), b_hh = bias(w.b_hh, g);
        each_tile({block, last}, [&](int64_t first, auto tile_rows) {
          constexpr int R = tile_rows;
          const Stored *x[R], *h[R];
          for (int r = 0; r < R; ++r) {
            x[r] = f.x + (first + r) * I;
            h[r] = h_before(d, first + r);
          }
          Dots<T, R> x_dots, u_dots;
          x_dots.add(w.w_ih + row * I, I, lane.valid, x, I);
          (Cell::kSplit ? u_dots : x_dots).add(w.w_hh + row * P, P, lane.valid, h, P);
          for (int r = 0; r < R; ++r) {
            const int64_t n = first - block + r;
            x_part[n][g] = x_dots.total(r) + (Cell::kSplit ? b_ih : b_ih + b_hh);
            u_part[n][g] = Cell::kSplit ? u_dots.total(r) + b_hh : V{};
          }
        });
      }
      for (int64_t n = block; n < last; ++n) cell(d, n, lane, x_part[n - block], u_part[n - block]);
    }
  }

  bool reset(int64_t n) const { return f.reset && f.reset[n]; }
  const Stored* h_before(int64_t d, int64_t n) const {
    return reset(n) ? zero_ : f.h0 + (d * N + n) * P;
  }

  void cell(int64_t d, int64_t n, Lane<T> lane, const V* x, const V* u) {
    const int64_t at = (d * N + n) * H;
    V saved[S > 0 ? S : 1], c{}, h{};
    if (!s.projected) h = lane.load_from(h_before(d, n));
    if constexpr (Cell::kState)
      if (!reset(n)) c = lane.load_from(f.c0 + at);
    Cell::forward(x, u, h, c, saved);
    if constexpr (Cell::kState) lane.store_to(f.c_n + at, c);
    if (f.save) this->save(d, n, lane, saved, c, h);
    if (s.projected) {
      store<V>(m_ + (d * N + n) * ld_cell + lane.at, h);
    } else {
      lane.store_to(f.h_n + at, h);
      lane.store_to(f.y + this->at_y(d, n), h);
    }
  }

  void project(int64_t d, Lane<T> lane) {
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
        lane.store_to(f.y + this->at_y(d, n), h);
      }
    });
  }
};

}  // namespace FASTRNN_NAMESPACE
