// What backward makes of the derivatives of a chunk of steps, in one product each over all its
// rows: the gradients of the layer's inputs and of every weight.
//
// A step is live if some derivative of it is not zero, or if zeros times one of the factors that
// they meet would not be zeros. What comes before the first live step of a chunk, and after the
// last, takes part in no product: the results are the same, a NaN where one is due included. Most
// steps are not live where the loss is one of the last outputs, and the sequence long.
#pragma once

#include "cpu/outer.h"
#include "cpu/zeros.h"

namespace FASTRNN_NAMESPACE {

template <class Stored>
class Gradients : protected Schedule<Stored> {
  using Base = Schedule<Stored>;

 protected:
  using Base::active, Base::C, Base::D, Base::f, Base::H, Base::I, Base::kind, Base::ld_cell,
      Base::ld_gates, Base::ld_state, Base::N, Base::P, Base::parallel, Base::place, Base::row,
      Base::rows_of, Base::s;
  using typename Base::Kept;
  using typename Base::O;
  using typename Base::T;
  using typename Base::V;
  using Plain = Panels<Stored, O, kWide, 1, false>;

  struct Direction {
    Plain ih, hh, hw, hr;  // hw: the rows of w_hh of a second product, of which v is the operand
    // A row that is one of operands goes on with zeros up to a multiple of kGrain.
    Buffer<Kept> d_x;          // [rows of a chunk, ld_gates] gradient of x, the input part
    Buffer<Kept> d_u;          // [rows of a chunk, ld_gates] gradient of u, where it differs
    Buffer<Kept> d_w;          // [rows of a chunk, ld_gates] gradient of the gates of v
    Buffer<Kept> d_y;          // [rows of a chunk, ld_y] complete gradient of h, with a projection
    Buffer<T> d_m;             // [N, ld_cell] gradient of o tanh(c), with a projection
    Buffer<T> d_v;             // [N, ld_state] gradient of v
    Buffer<T> d_h;             // [N, ld_state] gradient of h_t from later steps
    Buffer<T> d_c;             // [planes of c, N, ld_cell] gradient of c_t from later steps
    Buffer<T> d_p;             // [rows of a chunk, parameters, ld_cell] gradients of parameters
    Buffer<T> sums;            // gradients of the weights, where memory holds another type
    Buffer<int64_t> previous;  // [rows] row of the matrices one step before; ~n for the first step
                               // of entry n; kNone where a reset made the state before zero
    fastrnn::cpu::Live live;   // [steps]
    fastrnn::cpu::Fact finite_weights;

    Kept* d_hidden() const { return d_u ? d_u : d_x; }
  };

  static constexpr int64_t kNone = INT64_MIN;
  static constexpr int64_t kLeftBytes = 5 << 18;  // of d_x that a second-level cache keeps
  static constexpr bool kRounds = !std::is_same_v<Stored, T>;
  // Of one step: to pack the weights for them takes longer than it saves. Where panels are read as
  // they lie, GRUs and LSTMs of 64 rows take 0.78 to 0.93 of the time so; an RNN gains nothing. Of
  // others each thread would pack all for itself.
  static constexpr int64_t kFewRows = Plain::kAsItLies ? 64 : kTileRows<O, kWide>;

  const fastrnn::Backward<Stored>& b_;
  const bool keep_;          // packed weights; a step of a few rows reads them as they lie
  const int64_t ld_y_;       // of d_y
  const int64_t chunk_;      // time steps
  const int64_t GX, GU, GW;  // numbers of a row of x's gates, of h's, and of v's
  const int64_t head_;       // units of a head
  const int params_;
  Direction direction_[2];
  Buffer<T> zero_;
  Buffer<Stored> zero_state_;

  Gradients(const fastrnn::Backward<Stored>& backward, const Parallel& threads, const Kind& cell)
      : Base(backward.forward, threads, cell),
        b_(backward),
        keep_(s.steps > 1 || N > kFewRows),
        ld_y_(round_up(P, kGrain<O>)),
        chunk_(this->chunk(N, 0, kOuterDepth)),
        GX(kind.gates_x * H),
        GU(kind.gates_u * H),
        GW(kind.gates_w * H),
        head_(P / s.heads),
        params_(f.program ? static_cast<int>(f.program->info.params) : 0),
        direction_{make(0), make(1)},
        zero_(kWidth<T, kWide>),
        zero_state_(max(ld_state, max(ld_cell, C))) {}

  // Rows of derivatives as operands: as they lie, or, where those are of another type, in a buffer
  // of `operands_size`.
  static int64_t ld_operands(int64_t columns) {  // not a multiple of 4 KiB
    return round_up(columns, Base::kPad) + Base::kPad;
  }
  static int64_t operands_size(int64_t rows, int64_t columns) {
    return std::is_same_v<Kept, O> ? 0 : rows * ld_operands(columns);
  }
  static Rows<O> operands(const Kept* from, int64_t ld, int64_t rows, int64_t columns,
                          [[maybe_unused]] O* buffer) {
    if constexpr (std::is_same_v<Kept, O>) {
      return {from, ld};
    } else {
      O* to = buffer;
      for (int64_t r = 0; r < rows; ++r, to += ld_operands(columns)) {
        clear_beyond(to, columns);
        copy(to, from + r * ld, columns);
      }
      return {buffer, ld_operands(columns)};
    }
  }

  // h of a row of the matrices: the output, or of a program with another one what is kept beside.
  const Stored* h_of(int64_t d, int64_t row) const {
    return f.program && f.program->output > 0 ? f.hidden + this->at_hidden(d, row)
                                              : f.y + this->at_y(d, row);
  }
  const Stored* previous_h(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0 ? h_of(d, at) : at == kNone ? zero_state_ : f.h0 + (d * N + ~at) * P;
  }
  const Stored* previous_c(int64_t d, int64_t row) const {
    const int64_t at = direction_[d].previous[row];
    return at >= 0       ? f.cells + this->at_cell(d, at)
           : at == kNone ? zero_state_
                         : f.c0 + (d * N + ~at) * C;
  }

  // v of a row in the order of time.
  const Stored* v_of(int64_t d, int64_t row) const { return this->gates(d, place(row)); }

  bool finite_weights(int64_t d) {
    const fastrnn::Weights<const Stored>& w = f.weights[d];
    return direction_[d].finite_weights.get([&] {
      return finite<T>(w.w_ih, GX * I) && finite<T>(w.w_hh, (GU + GW) * P / s.heads) &&
             (!s.projected || finite<T>(w.w_hr, P * H));
    });
  }

  // Marks a step as live, unless all its derivatives are zero and all factors that they meet are
  // finite. `zero`: whether those of the rows in `batch` are all zero. Returns whether it is live.
  bool note_live(int64_t d, int64_t step, Range batch, bool zero) {
    const auto finite_factors = [&] {
      const int64_t first = row(d, step) + batch.first, rows = active(d, step, batch);
      for (int64_t n = first; n < first + rows && b_.need_weights; ++n)
        if (!finite<T>(f.x + place(n) * I, I) || !finite<T>(previous_h(d, n), P) ||
            (GW > 0 && !finite<T>(v_of(d, n), H)) ||
            (s.projected && !finite<T>(f.hidden + this->at_hidden(d, place(n)), H)))
          return false;
      return finite_weights(d);
    };
    const bool live = !zero || !finite_factors();
    if (live) direction_[d].live.mark(step);
    return live;
  }

  // The chunk's rows, counted from its first, from the first live step to the last. They begin at a
  // multiple of kGrain, so that each sum takes the same rows together as over the whole chunk; but
  // at a step where sums go from step to step.
  Range live_rows(int64_t d, Range steps) const {
    const int64_t first = rows_of(d, steps).first;
    direction_[d].live.trim(steps.first, steps.last);
    if (steps.count() == 0) return {0, 0};
    const Range live = rows_of(d, steps);
    const int64_t grain = b_.of_rows ? 1 : kGrain<O>;
    return {(live.first - first) / grain * grain, live.last - first};
  }

  // The complete gradient of h_t: from later steps, of which nothing is left, and of y.
  V take(T* d_h, int64_t d, int64_t row, Lane<T> lane) {
    V dh = load<V>(d_h + lane.at);
    if (b_.dy) dh += lane.load_from(b_.dy + this->at_y(d, row));
    store<V>(d_h + lane.at, V{});
    return dh;
  }

  static V rounded(V v) {
    if constexpr (!kRounds) return v;
    Stored lane[kLanes<T>];
    store<V>(lane, v);
    return load<V>(lane);
  }

  // dx (+)= d_x W_ih for one thread's share of a chunk's rows. The other direction meets the rows
  // at the other end of time first: where it has been, its part is there already, rounded if it is
  // Stored as another type. The own part is then rounded, too: which of the two comes first depends
  // on the number of rows, on which no row may depend.
  void input_gradient(int64_t task, int64_t d, Range steps) {
    const Range all = rows_of(d, steps), live = live_rows(d, steps);
    const auto visited = [&](int64_t row) {
      if (D == 1) return false;
      // What direction 0 has done by now includes this chunk, what direction 1 has done does not.
      const Range other = d == 1 ? rows_of(0, {steps.first, s.steps})
                                 : rows_of(1, {min(steps.last, s.steps - 1), s.steps});
      return (d == 1 || steps.last < s.steps) && row >= other.first && row < other.last;
    };
    const Range own = piece(all.count(), task, parallel.threads, 1);
    for (int64_t i = own.first; i < own.last; ++i)
      if ((i < live.first || i >= live.last) && !visited(all.first + i))
        memset(b_.dx + place(all.first + i) * I, 0, I * sizeof(Stored));
    const Range share = piece(live.count(), task, parallel.threads, kTileRows<O, kWide>);
    const Range rows{live.first + share.first, live.first + share.last};
    const Direction& w = direction_[d];
    int64_t block = kRowBlock<O>;  // rows of d_x that stay there for all panels
    while (block > kRowBlock<O> / 4 && block * ld_gates * int64_t{sizeof(O)} > kLeftBytes)
      block /= 2;
    const Buffer<T> partial(min(block, rows.count()) * kWidth<T, kWide>);
    const Buffer<O> scratch(w.ih.scratch()), left(operands_size(min(block, rows.count()), GX));
    for (int64_t i = rows.first; i < rows.last; i += block) {
      const int64_t count = min(block, rows.last - i);
      const Rows<O> d_x = operands(w.d_x + i * ld_gates, ld_gates, count, GX, left);
      for (int64_t p = 0; p < w.ih.count(); ++p) {
        multiply<O, kWide>(d_x.data, d_x.ld, count, GX, w.ih.get(p, scratch), w.ih.far(p + 1),
                           zero_, 0, partial, kWidth<T, kWide>);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = all.first + i + r, to = place(row);
          const bool add = visited(row);
          for (int v = 0; v < kWide; ++v) {
            const Lane<T> lane(p * kWidth<T, kWide> + v * kLanes<T>, I);
            if (lane.valid == 0) break;
            V sum = load<V>(partial + r * kWidth<T, kWide> + v * kLanes<T>);
            if (add) sum = rounded(sum) + lane.load_from(b_.dx + to * I);
            lane.store_to(b_.dx + to * I, sum);
          }
        }
      }
    }
  }

  // A weight's gradient where sums over more than one chunk of rows are kept: its own memory, or,
  // if that is of another type, what `next` points at, which then moves on.
  static T* sums(Stored* gradient, int64_t count, T*& next) {
    if constexpr (kRounds)
      return gradient ? std::exchange(next, next + count) : nullptr;
    else
      return gradient;
  }

  // One of several shares of the rows of every weight's gradient, summed over a chunk's rows, or of
  // each batch row's, summed over a chunk's steps.
  void weight_gradients(int64_t task, Range steps, bool add, int64_t shares) {
    for (int64_t d = 0; d < D; ++d)
      for (int64_t n = 0; n < (b_.of_rows ? N : 1); ++n)
        weight_gradients(d, n, b_.of_rows ? N : 1, task, steps, add, shares);
  }

  // The same of one direction, summed over every `stride`th row from `first` on: gradient `first`.
  void weight_gradients(int64_t d, int64_t first, int64_t stride, int64_t task, Range steps,
                        bool add, int64_t shares) {
    const Range gates_x = piece(GX, task, shares, kTileRows<O, kNarrow>);
    const Range gates_u = piece(GU, task, shares, kTileRows<O, kNarrow>);
    const Range gates_w = piece(GW, task, shares, kTileRows<O, kNarrow>);
    const Range states = piece(P, task, shares, kTileRows<O, kNarrow>);
    const Direction& w = direction_[d];
    const auto& out = b_.dweights[d];
    const Range live = live_rows(d, steps);
    const int64_t rows = live.count() / stride, ld = stride * ld_gates;
    const int64_t left = live.first + first, from = rows_of(d, steps).first + left;
    const Kept* const left_x = w.d_x + left * ld_gates;
    const Kept* const left_u = w.d_hidden() + left * ld_gates;
    const auto row = [&](int64_t k) { return from + k * stride; };
    const auto d_x = [&](int64_t k) { return left_x + k * ld; };
    const auto d_u = [&](int64_t k) { return left_u + k * ld; };
    const auto d_w = [&](int64_t k) { return w.d_w + left * ld_gates + k * ld; };
    const auto x = [&](int64_t k) { return f.x + place(row(k)) * I; };
    const auto v = [&](int64_t k) { return v_of(d, row(k)); };
    const auto h = [&](int64_t k) { return previous_h(d, row(k)); };
    const auto m = [&](int64_t k) { return f.hidden + this->at_hidden(d, place(row(k))); };
    T* next = w.sums;
    const auto product = [&](Range range, int64_t m, int64_t n, const Kept* left, int64_t ld,
                             auto&& right, Stored* all) {
      Stored* const to = all + first * m * n;
      T* const sum = sums(to, m * n, next);
      outer<O>(rows, range, n, left, ld, right, sum, add);
      finish(steps, to, sum, {range.first * n, range.last * n});
    };
    const auto column_sum = [&](Range range, int64_t count, auto&& left, Stored* all) {
      Stored* const to = all + first * count;
      T* const sum = sums(to, count, next);
      column_sums(rows, range, left, sum, add);
      finish(steps, to, sum, range);
    };
    product(gates_x, GX, I, left_x, ld, x, out.w_ih);
    if (s.heads == 1)
      product(gates_u, GU, P, left_u, ld, h, out.w_hh);
    else
      head_gradients(task, shares, rows, left_u, h, steps, add, sums(out.w_hh, GU * head_, next),
                     out.w_hh);
    if (GW > 0) product(gates_w, GW, P, d_w(0), ld, v, out.w_hh + GU * P);
    if (out.b_ih) {
      column_sum(gates_x, GX, d_x, out.b_ih);
      if (kind.split)  // where there is no row, too, and d_u is null
        column_sum(gates_u, GU, d_u, out.b_hh);
      else if (steps.first == 0)  // all chunks are done: the same sums
        copy(out.b_hh + first * GU + gates_x.first, out.b_ih + first * GX + gates_x.first,
             gates_x.count());
      if (GW > 0) column_sum(gates_w, GW, d_w, out.b_hh + GU);
    }
    if (s.projected) product(states, P, H, w.d_y + left * ld_y_, stride * ld_y_, m, out.w_hr);
    for (int i = 0; i < params_; ++i) {
      const auto d_p = [&](int64_t k) { return w.d_p + ((left + k) * params_ + i) * ld_cell; };
      if (f.forms[i] == fastrnn::Form::kUnit)
        column_sum(piece(H, task, shares, 1), H, d_p, out.params[i]);
      else
        row_gradients(piece(rows, task, shares, 1), from, d_p, f.forms[i], out.params[i]);
    }
  }

  // That of w_hh where there are heads: of every gate and head a product of its own, each for one
  // of the shares.
  template <class Rows>
  void head_gradients(int64_t task, int64_t shares, int64_t rows, const Kept* left, Rows&& h,
                      Range steps, bool add, T* sum, Stored* to) {
    for (int64_t at = 0; at < GU; at += head_) {  // units of one gate and head
      if (at / head_ % shares != task) continue;
      const int64_t first = at % H;
      const auto own = [&](int64_t k) { return h(k) + first; };
      outer<O>(rows, {0, head_}, head_, left + at, ld_gates, own, sum + at * head_, add);
      finish(steps, to, sum, {at * head_, (at + head_) * head_});
    }
  }

  // The gradient of a parameter that every row has its own numbers of, for some rows of a chunk.
  template <class Rows>
  void row_gradients(Range rows, int64_t from, Rows&& d_p, fastrnn::Form form, Stored* to) {
    for (int64_t k = rows.first; k < rows.last; ++k) {
      const T* const row = d_p(k);
      const int64_t at = place(from + k);
      if (form == fastrnn::Form::kEach) {
        copy(to + at * H, row, H);
        continue;
      }
      V sum{};
      for (int64_t u = 0; u < H; u += kLanes<T>) sum += Lane<T>(u, H).load_from(row);
      T lane[kLanes<T>], total = 0;
      store<V>(lane, sum);
      for (const T each : lane) total += each;
      copy(to + at, &total, 1);
    }
  }

  // After the last chunk sums become gradients.
  static void finish(Range steps, Stored* gradient, const T* sum, Range range) {
    if constexpr (kRounds)
      if (steps.first == 0) copy(gradient + range.first, sum + range.first, range.count());
  }

 private:
  // With what `outer` reads behind its end.
  static Buffer<Kept> left_matrix(int64_t count) {
    return Buffer<Kept>(count > 0 ? count + kTileRows<O, kNarrow> : 0);
  }

  Direction make(int64_t d) {
    const bool used = d < D;
    const fastrnn::Weights<const Stored>& w = f.weights[used ? d : 0];
    const bool through = s.steps > 1 || b_.dh0;  // whether a gradient goes through w_hh
    const int64_t rows = used ? chunk_ * N : 0;
    const int64_t weights =
        GX * (I + 1) + (GU + GW) * (head_ + 1) + (s.projected ? P * H : 0) + params_ * H;
    return {Plain(w.w_ih, GX, I, used && keep_ && b_.dx),
            Plain(w.w_hh, GU, head_, used && through && (keep_ || s.heads > 1) && GU > 0),
            Plain(GW > 0 ? w.w_hh + GU * P : nullptr, GW, P, used && keep_),
            Plain(w.w_hr, P, H, used && keep_),
            left_matrix(rows * ld_gates),
            left_matrix(kind.split ? rows * ld_gates : 0),
            left_matrix(GW > 0 ? rows * ld_gates : 0),
            left_matrix(s.projected ? rows * ld_y_ : 0),
            Buffer<T>(used && s.projected ? N * ld_cell : 0),
            Buffer<T>(used && GW > 0 ? N * ld_state : 0),
            Buffer<T>(used ? N * ld_state : 0),
            Buffer<T>(used ? kind.own * N * ld_cell : 0),
            Buffer<T>(rows * params_ * ld_cell),
            Buffer<T>(used && kRounds && b_.need_weights ? weights : 0),
            Buffer<int64_t>(used ? this->total : 0),
            fastrnn::cpu::Live(used ? s.steps : 0),
            {}};
  }
};

}  // namespace FASTRNN_NAMESPACE
