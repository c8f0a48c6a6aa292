// One launch per time step. A block has a tile of rows x units of one direction: it makes the sums
// of the recurrent product, and its epilogue does the cell, one thread per (row, unit). In the
// library schedule torch makes the sums, in memory, and the same epilogue follows alone.
//
// A launch may begin while the one before still runs: before previous_grid_wait it reads only what
// was there before the first step, which is why the first launch of a loop must not overlap. Every
// thread calls it, so that the end of a launch means the end of all before.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/product.cuh"

namespace fastrnn::cuda {

constexpr int kPointwiseThreads = 256;

// Where a thread of a product works: 1-D grid of row blocks x directions x unit tiles, the last
// fastest. A thread has one unit of a row; the threads beyond the rows of the tile have none.
template <class Product>
struct Place {
  static_assert(kThreads >= kTileRows * Product::kUnits);
  int d, first_row, first_unit;

  FASTRNN_DEVICE Place(const Sizes& s, int64_t units) {
    const int tiles = static_cast<int>((units + Product::kUnits - 1) / Product::kUnits);
    const int group = block() / tiles, directions = static_cast<int>(s.directions);
    first_unit = block() % tiles * Product::kUnits;
    first_row = group / directions * kTileRows;
    d = group % directions;
  }
  FASTRNN_DEVICE static int unit_in_tile() { return thread() % Product::kUnits; }
  FASTRNN_DEVICE static int row_in_tile() { return thread() / Product::kUnits; }
  FASTRNN_DEVICE int unit() const { return first_unit + unit_in_tile(); }
  // The row of the batch, outside of it where there is none.
  FASTRNN_DEVICE int n() const {
    return row_in_tile() < kTileRows ? first_row + row_in_tile() : INT32_MAX;
  }
  FASTRNN_DEVICE static auto sum(int plane) {
    return Product::sum(row_in_tile(), plane, unit_in_tile());
  }
};

// One element of the pointwise kernels: 1-D grid over [D, N, units].
struct Element {
  int d, n, unit;  // n is outside the batch where there is none

  FASTRNN_DEVICE Element(const Sizes& s, int64_t units) {
    const int64_t at = static_cast<int64_t>(block()) * kPointwiseThreads + thread();
    const bool inside = at < s.directions * s.batch * units;
    unit = static_cast<int>(at % units);
    d = inside ? static_cast<int>(at / units / s.batch) : 0;
    n = inside ? static_cast<int>(at / units % s.batch) : INT32_MAX;
  }
  // Of sums [D, N, planes, units].
  template <class V>
  FASTRNN_DEVICE V sum(const void* sums, const Sizes& s, int plane, int planes,
                       int64_t units) const {
    const int64_t row = (d * s.batch + n) * planes + plane;
    return static_cast<const V*>(sums)[row * units + unit];
  }
};

// A forward step for a thread of a launch, to which the launch before hands the state in memory.
template <class Cell, class T>
class ForwardLaunch {
  using V = Compute<T>;
  using F = ForwardCell<Cell, T>;
  const Forward& f_;
  const Step& step_;
  const int unit_;
  Row row_;
  typename F::Bias bias_;
  F cell_;
  V kept_{};

  FASTRNN_DEVICE int64_t in_kept() const {
    return step_.in_state(f_.size, row_.n) * f_.size.hidden + unit_;
  }

 public:
  // Loads what does not depend on the step before. `n` is the row of the batch.
  FASTRNN_DEVICE ForwardLaunch(const Forward& f, const Step& step, int n, int unit)
      : f_(f), step_(step), unit_(unit), row_(f.size, step, n) {
    bias_ = F::load_bias(f, step.d, unit);
    if (unit >= f.size.hidden) row_.drop();
    cell_.load(f, step, n, unit, row_.active());
  }

  // Loads what the step before wrote, but for its sums.
  FASTRNN_DEVICE void load_kept() {
    if (kKeeps<Cell> && row_.continues()) kept_ = read_new<V>(f_.kept, in_kept());
  }

  // sum(g) is the product of the row with plane g.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    if (!row_.active()) return;
    const Sizes& s = f_.size;
    const auto made = cell_.run(row_, bias_, kept_, sum);
    if constexpr (kKeeps<Cell>) static_cast<V*>(f_.kept)[in_kept()] = made.kept();
    F::save(f_, step_, row_, unit_, made);
    if (f_.projected) {
      write<T>(f_.m, step_.in_state(s, row_.n) * pitch<T>(s.hidden) + unit_, made.h);
      if (f_.hidden != nullptr)
        write<T>(f_.hidden, step_.in_saved(s, row_.n) * s.hidden + unit_, made.h);
    } else {
      hand_on<T>(f_, step_, row_, unit_, made.h);
      write_state<T>(f_, step_, row_, unit_, made.h);
    }
  }
};

// The mirror of ForwardLaunch.
template <class Cell, class T>
class BackwardLaunch {
  static constexpr int G = Cell::kGates;
  using V = Compute<T>;
  const Backward& b_;
  const BackwardStep& step_;
  const int unit_;
  BackwardRow row_;
  BackwardCell<Cell, T> cell_;
  V kept_{};

  FASTRNN_DEVICE int64_t in_kept() const {
    return step_.in_state(b_.size, row_.n) * b_.size.hidden + unit_;
  }

 public:
  FASTRNN_DEVICE BackwardLaunch(const Backward& b, const BackwardStep& step, int n, int unit)
      : b_(b), step_(step), unit_(unit), row_(b.size, step, n) {
    if (unit >= b.size.hidden) row_.drop();
    cell_.load(b, step, row_, unit);
  }

  FASTRNN_DEVICE void load_kept() {
    if (kKeeps<Cell> && row_.active()) kept_ = read_new<V>(b_.d_kept, in_kept());
  }

  // sum() is the product of the row.
  template <class SumOf>
  FASTRNN_DEVICE void finish(SumOf sum) {
    if (!row_.active()) return;
    const Sizes& s = b_.size;
    const auto made = cell_.run(b_, row_, kept_, sum);
    if constexpr (kKeeps<Cell>) static_cast<V*>(b_.d_kept)[in_kept()] = made.kept;
    const int64_t sent = step_.in_turn(s, step_.i, row_.n) * pitch<T>(G * s.hidden) + unit_;
    FASTRNN_UNROLL
    for (int g = 0; g < G; ++g) write<T>(b_.sent, sent + g * s.hidden, made.du[g]);
    BackwardCell<Cell, T>::write_gradients(b_, step_, row_, unit_, made);
  }
};

#define FASTRNN_STEP_KERNEL FASTRNN_KERNEL FASTRNN_BOUNDS(kThreads, 2) void

template <class Cell, class Operand>
FASTRNN_STEP_KERNEL forward_cell(FASTRNN_GRID_CONSTANT const Forward f, int64_t i) {
  using P = Product<Operand, Cell::kGates>;
  using T = typename P::T;
  const Sizes& s = f.size;
  const Place<P> at(s, s.hidden);
  const int64_t depth = pitch<T>(s.state);
  P product(static_cast<const T*>(f.w_hh) + at.d * Cell::kGates * s.hidden * depth, s.hidden,
            at.first_unit, depth);
  product.start_weights();
  const Step step(s, at.d, i);
  ForwardLaunch<Cell, T> cell(f, step, at.n(), at.unit());
  product.set_rows(f.h, [&](int r) {
    const Row row(s, step, at.first_row + r);
    return row.continues() ? step.in_turn(s, i, row.n) : -1;
  });
  next_grid_start();
  previous_grid_wait();
  product.start_rows();
  cell.load_kept();
  product.run();
  cell.finish(Place<P>::sum);
}

// h = m w_hr^T of a projected layer.
template <class Operand>
FASTRNN_STEP_KERNEL forward_state(FASTRNN_GRID_CONSTANT const Forward f, int64_t i) {
  using P = Product<Operand, 1>;
  using T = typename P::T;
  const Sizes& s = f.size;
  const Place<P> at(s, s.state);
  const int64_t depth = pitch<T>(s.hidden);
  P product(static_cast<const T*>(f.w_hr) + at.d * s.state * depth, s.state, at.first_unit, depth);
  product.start_weights();
  const Step step(s, at.d, i);
  product.set_rows(f.m, [&](int r) {
    const Row row(s, step, at.first_row + r);
    return row.active() ? step.in_state(s, row.n) : -1;
  });
  next_grid_start();
  previous_grid_wait();
  product.start_rows();
  product.run();
  const Row row(s, step, at.n());
  if (!row.active() || at.unit() >= s.state) return;
  const auto h = Place<P>::sum(0);
  hand_on<T>(f, step, row, at.unit(), h);
  write_state<T>(f, step, row, at.unit(), h);
}

// Rows of `sent` that the step after has for this one.
FASTRNN_DEVICE int64_t sent_row(const Sizes& s, const BackwardStep& step, int n) {
  const BackwardRow row(s, step, n);
  return row.comes() ? step.in_turn(s, step.i + 1, n) : -1;
}

template <class Cell, class Operand>
FASTRNN_STEP_KERNEL backward_cell(FASTRNN_GRID_CONSTANT const Backward b, int64_t i) {
  using P = Product<Operand, 1>;
  using T = typename P::T;
  const Sizes& s = b.size;
  const Place<P> at(s, s.hidden);
  const int64_t depth = pitch<T>(b.projected ? s.state : Cell::kGates * s.hidden);
  P product(static_cast<const T*>(b.projected ? b.w_hr : b.w_hh) + at.d * s.hidden * depth,
            s.hidden, at.first_unit, depth);
  product.start_weights();
  const BackwardStep step(b, at.d, i);
  BackwardLaunch<Cell, T> cell(b, step, at.n(), at.unit());
  product.set_rows(b.projected ? b.sent_state : b.sent, [&](int r) {
    const int n = at.first_row + r;
    if (!b.projected) return sent_row(s, step, n);
    return Row(s, step, n).active() ? step.in_state(s, n) : -1;
  });
  next_grid_start();
  previous_grid_wait();
  product.start_rows();
  cell.load_kept();
  product.run();
  cell.finish([] { return Place<P>::sum(0); });
}

// The gradient of h_t of a projected layer.
template <class Operand>
FASTRNN_STEP_KERNEL backward_state(FASTRNN_GRID_CONSTANT const Backward b, int64_t i) {
  using P = Product<Operand, 1>;
  using T = typename P::T;
  const Sizes& s = b.size;
  const Place<P> at(s, s.state);
  const int64_t depth = pitch<T>(s.planes * s.hidden);
  P product(static_cast<const T*>(b.w_hh) + at.d * s.state * depth, s.state, at.first_unit, depth);
  product.start_weights();
  const BackwardStep step(b, at.d, i);
  product.set_rows(b.sent, [&](int r) { return sent_row(s, step, at.first_row + r); });
  Row row(s, step, at.n());
  if (at.unit() >= s.state) row.drop();
  const StateGradient<T> state(b, step, row, at.unit());
  next_grid_start();
  previous_grid_wait();
  product.start_rows();
  product.run();
  if (row.active())
    write_state_gradient<T>(b, step, row, at.unit(), state.complete(b, Place<P>::sum(0), 0));
}

#undef FASTRNN_STEP_KERNEL

// The pointwise kernels of the library schedule, whose sums include rows that do not continue.
#define FASTRNN_POINTWISE_KERNEL FASTRNN_KERNEL FASTRNN_BOUNDS(kPointwiseThreads, 2) void

template <class Cell, class T>
FASTRNN_POINTWISE_KERNEL forward_cell_pointwise(FASTRNN_GRID_CONSTANT const Forward f, int64_t i) {
  const Sizes& s = f.size;
  const Element at(s, s.hidden);
  const Step step(s, at.d, i);
  ForwardLaunch<Cell, T> cell(f, step, at.n, at.unit);
  cell.load_kept();
  cell.finish([&](int g) { return at.sum<Compute<T>>(f.sums, s, g, Cell::kGates, s.hidden); });
}

template <class T>
FASTRNN_POINTWISE_KERNEL forward_state_pointwise(FASTRNN_GRID_CONSTANT const Forward f, int64_t i) {
  const Sizes& s = f.size;
  const Element at(s, s.state);
  const Step step(s, at.d, i);
  const Row row(s, step, at.n);
  if (!row.active()) return;
  const auto h = at.sum<Compute<T>>(f.sums, s, 0, 1, s.state);
  hand_on<T>(f, step, row, at.unit, h);
  write_state<T>(f, step, row, at.unit, h);
}

template <class Cell, class T>
FASTRNN_POINTWISE_KERNEL backward_cell_pointwise(FASTRNN_GRID_CONSTANT const Backward b,
                                                 int64_t i) {
  const Sizes& s = b.size;
  const Element at(s, s.hidden);
  const BackwardStep step(b, at.d, i);
  BackwardLaunch<Cell, T> cell(b, step, at.n, at.unit);
  cell.load_kept();
  cell.finish([&] { return at.sum<Compute<T>>(b.sums, s, 0, 1, s.hidden); });
}

template <class T>
FASTRNN_POINTWISE_KERNEL backward_state_pointwise(FASTRNN_GRID_CONSTANT const Backward b,
                                                  int64_t i) {
  const Sizes& s = b.size;
  const Element at(s, s.state);
  const BackwardStep step(b, at.d, i);
  const BackwardRow row(s, step, at.n);
  if (!row.active()) return;
  const StateGradient<T> state(b, step, row, at.unit);
  const auto sent = row.comes() ? at.sum<Compute<T>>(b.sums, s, 0, 1, s.state) : 0;
  write_state_gradient<T>(b, step, row, at.unit, state.complete(b, sent, 0));
}

#undef FASTRNN_POINTWISE_KERNEL

}  // namespace fastrnn::cuda
