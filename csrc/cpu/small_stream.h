// A layer that goes on for ever, whose weights are smaller than floats (small_weights.h). States,
// gates and what lies between are floats.
//
// Of several steps the inputs meet W_ih together, as many as kRows rows: it is read once for them.
#pragma once

#include "cpu/small_weights.h"

namespace FASTRNN_NAMESPACE {

template <class Cell>
class SmallStream final : public fastrnn::Stream {
  using V = Floats;
  static constexpr int G = Cell::kGates;
  static constexpr int kTogether = 4;  // registers of units, see Many
  static constexpr int64_t kRows = 16;

  const fastrnn::Forward<float>& f_;
  const int64_t I_, H_, P_, N_;
  const int64_t together_;  // steps
  SmallMatrix ih_, hh_, hr_;
  Buffer<float> m_;  // [N, H] h before the projection
  bool up_ = false;

 public:
  SmallStream(const fastrnn::Forward<float>& f, const fastrnn::SmallWeights& w, bool tiles)
      : f_(f),
        I_(f.size.input),
        H_(f.size.hidden),
        P_(f.size.state),
        N_(f.size.batch),
        together_(max(1, kRows / N_)),
        ih_(w.w_ih, w.wide, tiles, G, H_, I_, N_ * together_, f.weights[0].b_ih),
        hh_(w.w_hh, w.wide, tiles, G, H_, P_, N_, f.weights[0].b_hh),
        hr_(w.w_hr, w.wide, tiles, 1, f.size.projected ? P_ : 0, H_, N_, nullptr),
        m_(f.size.projected ? N_ * H_ : 0) {}

  void steps(int64_t count) override {
    const fastrnn::cpu::FlushDenormals flush;
    for (int64_t t = 0; t < count; t += together_) few_steps(t, min(together_, count - t));
  }

 private:
  void few_steps(int64_t first, int64_t count) {
    const int64_t rows = count * N_;
    for (int64_t n = 0; n < rows; ++n) ih_.take(n, f_.x + (first * N_ + n) * I_);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t n = 0; n < N_; ++n) hh_.take(n, f_.h0 + n * P_);
      up_ = !up_;
      if (t == 0 && up_) ih_.multiply(rows, up_);
      hh_.multiply(N_, up_);
      if (t == 0 && !up_) ih_.multiply(rows, up_);
      float* const y = f_.y + (first + t) * N_ * P_;
      for (int64_t n = 0; n < N_; ++n) {
        int64_t unit = 0;
        for (; unit + kTogether * kLaneWords <= H_; unit += kTogether * kLaneWords)
          cells<kTogether>(t * N_ + n, n, unit, y);
        for (; unit < H_; unit += kLaneWords) cells<1>(t * N_ + n, n, unit, y);
      }
      if (f_.size.projected) project(y);
    }
  }

  // K registers of units of row n, whose input is `row` of those taken together; its output in y.
  template <int K>
  void cells(int64_t row, int64_t n, int64_t unit, float* y) {
    using W = Many<V, K>;
    const auto lane = [&](int k) { return Lane<float>(unit + k * kLaneWords, H_); };
    W x[G], u[G], saved[Cell::kSaved > 0 ? Cell::kSaved : 1], h{}, c{};
    for (int g = 0; g < G; ++g) {
      x[g] = each_of<K>([&](int k) { return load<V>(ih_.at(row, g, lane(k).at)); });
      u[g] = each_of<K>([&](int k) { return load<V>(hh_.at(n, g, lane(k).at)); });
    }
    if (Cell::kKeepsH) h = each_of<K>([&](int k) { return lane(k).load_from(f_.h0 + n * H_); });
    if (Cell::kKeepsC) c = each_of<K>([&](int k) { return lane(k).load_from(f_.c0 + n * H_); });
    Cell::forward(x, u, h, c, saved);
    for (int k = 0; k < K; ++k) {
      if (Cell::kKeepsC) lane(k).store_to(f_.c_n + n * H_, c.v[k]);
      if (f_.size.projected) {
        lane(k).store_to(m_ + n * H_, h.v[k]);
      } else {
        lane(k).store_to(f_.h_n + n * H_, h.v[k]);
        lane(k).store_to(y + n * H_, h.v[k]);
      }
    }
  }

  void project(float* y) {
    for (int64_t n = 0; n < N_; ++n) hr_.take(n, m_ + n * H_);
    hr_.multiply(N_, up_);
    for (int64_t n = 0; n < N_; ++n)
      for (float* to : {f_.h_n, y}) memcpy(to + n * P_, hr_.at(n, 0, 0), P_ * sizeof(float));
  }
};

template <class Cell, bool Tiles = false>
fastrnn::Stream* small_stream(const fastrnn::Forward<float>& f, const fastrnn::SmallWeights& w) {
  return new SmallStream<Cell>(f, w, Tiles);
}

}  // namespace FASTRNN_NAMESPACE
