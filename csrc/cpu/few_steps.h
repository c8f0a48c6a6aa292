// A layer of one time step or a few. Packing its weights would take longer than it saves: they are
// read as they lie, each row of a weight in a dot product of its own.
#pragma once

#include "cpu/ends.h"
#include "cpu/schedule.h"

// With 32 registers GCC 12 left the sums in memory where `dots` was inlined into a step. With 16 a
// call costs more than it saves.
#if FASTRNN_REGISTERS == 32
#define FASTRNN_DOTS FASTRNN_NOINLINE
#else
#define FASTRNN_DOTS FASTRNN_INLINE
#endif

namespace FASTRNN_NAMESPACE {

// Terms of dot products: x[r] [k] with rows of a matrix, `ld` apart, which is read as it lies.
template <class W, class X>
struct Terms {
  const W* w;
  int64_t ld;
  const X* const* x;
  int64_t k;  // 0 for none
};

// The most vectors whose sums with four rows at a time stay in registers.
inline constexpr int kMostDots = kAccumulators / 4;

// sum[r]: dot products of vector r with kLanes rows of a matrix, of which the first `valid` > 0
// exist, one in each lane. The terms of `first` and then those of `second` are added up, or, if
// Apart, those of `second` are others, in other[r].
//
// Each kind of terms has a loop of its own, whose end a processor then learns.
template <class T, int R, bool Apart, class W, class X>
FASTRNN_DOTS void dots(const Terms<W, X>& first, const Terms<W, X>& second, int64_t valid,
                       Vec<T>* sum, [[maybe_unused]] Vec<T>* other) {
  using V = Vec<T>;
  constexpr int kLane = kLanes<T>;
  constexpr int kColumns = R == 1 ? kLane : kLane < 4 ? kLane : 4;  // at a time
  V sums[R][kLane], others[R][kLane];
  for (int c = 0; c < kLane; c += kColumns) {
    V acc[R][kColumns] = {};
    const auto each = [](auto&& body) __attribute__((always_inline)) {
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) {
        FASTRNN_UNROLL
        for (int l = 0; l < kColumns; ++l) body(r, l);
      }
    };
    const auto add = [&](const Terms<W, X>& terms) __attribute__((always_inline)) {
      const X* const* const x = terms.x;
      const int64_t k = terms.k, ld = terms.ld;
      const W* row[kColumns];
      row[0] = terms.w + min(c, valid - 1) * ld;
      FASTRNN_UNROLL
      for (int l = 1; l < kColumns; ++l) row[l] = row[l - 1] + (c + l < valid ? ld : 0);
      int64_t i = 0;
      for (; i + kLane <= k; i += kLane)
        each([&](int r, int l) __attribute__((always_inline)) {
          acc[r][l] = fma(load<V>(x[r] + i), load<V>(row[l] + i), acc[r][l]);
        });
      if (i < k) {
        V rest[R];
        for (int r = 0; r < R; ++r) rest[r] = load_part<V>(x[r] + i, k - i);
        each([&](int r, int l) __attribute__((always_inline)) {
          if (c + l < valid) acc[r][l] = fma(rest[r], load_part<V>(row[l] + i, k - i), acc[r][l]);
        });
      }
    };
    const auto take = [&](V(&to)[R][kLane]) __attribute__((always_inline)) {
      each([&](int r, int l) __attribute__((always_inline)) {
        to[r][c + l] = acc[r][l];
        acc[r][l] = V{};
      });
    };
    add(first);
    if constexpr (Apart) take(sums);
    add(second);
    take(Apart ? others : sums);
  }
  for (int r = 0; r < R; ++r) sum[r] = sums_of_lanes<T>(sums[r]);
  if constexpr (Apart)
    for (int r = 0; r < R; ++r) other[r] = sums_of_lanes<T>(others[r]);
}

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
    int64_t n = range.first;
    for (; n + kMostDots <= range.last; n += kMostDots)
      body(n, std::integral_constant<int, kMostDots>{});
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
        V dot[R];
        dots<T, R, false, Stored, Stored>({f.weights[d].w_ih + (g * H + lane.at) * I, I, x, I}, {},
                                          lane.valid, dot, nullptr);
        for (int r = 0; r < R; ++r) store<V>(input_part(d, first + r, g, lane), dot[r] + b);
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
          V x_dot[R], u_dot[R];
          dots<T, R, Cell::kSplit, Stored, Stored>({w.w_ih + row * I, I, x, s.steps == 1 ? I : 0},
                                                   {w.w_hh + row * P, P, h, P}, lane.valid, x_dot,
                                                   u_dot);
          for (int r = 0; r < R; ++r) {
            const int64_t n = first - block + r;
            const V before = s.steps > 1 ? load<V>(input_part(d, from + first + r, g, lane)) : b;
            x_part[n][g] = Cell::kSplit && s.steps > 1 ? before : x_dot[r] + before;
            u_part[n][g] = Cell::kSplit ? u_dot[r] + b_hh : V{};
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
      V dot[R];
      dots<T, R, false, Stored, T>({f.weights[d].w_hr + lane.at * H, H, m, H}, {}, lane.valid, dot,
                                   nullptr);
      for (int r = 0; r < R; ++r) {
        const int64_t n = first + r;
        const V h = dot[r];
        lane.store_to(f.h_n + (d * N + n) * P, h);
        lane.store_to(f.y + this->at_y(d, this->row(d, i) + n), h);
      }
    });
  }
};

}  // namespace FASTRNN_NAMESPACE
