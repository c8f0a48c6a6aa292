// A weight whose numbers are floats, halves of 16 bits, or int8 with a scale for each row, packed;
// and its product with a few rows, which are quantised before if it is int8.
//
// It lies in words of 32 bits. A word holds kTerms numbers of one row of the weight that follow
// each other; a panel holds the words of up to kPanel registers' worth of rows, which are the
// columns of the product, at every kTerms'th k. A product reads each panel once for one row, or for
// a few, from one end to the other: so few rows take as long as the reading. Where there are tiles,
// they multiply more rows of int8; the words of a column are then zeros up to whole tiles.
#pragma once

#include <limits>
#include <optional>

#include "cpu/ends.h"
#include "cpu/small_formats.h"
#if defined(FASTRNN_DOT_TILES)
#include "cpu/small_tiles.h"
#endif

namespace FASTRNN_NAMESPACE {

#if defined(FASTRNN_DOT_TILES)
inline constexpr bool kByteTiles = true;
#else
inline constexpr bool kByteTiles = false;
#endif

class SmallMatrix {
  const fastrnn::SmallWeight weight_;
  const bool wide_;                          // activations of 16 bits
  const bool tiles_;                         // whether any product goes through them
  const int64_t groups_, units_, k_, rows_;  // columns of a group; rows of a left-hand matrix
  const int64_t registers_;                  // of all columns, whole halves of panels
  Buffer<uint32_t> packed_;                  // [panel, k / kTerms, registers of the panel]
  Buffer<float> scale_, bias_;               // [columns]
  Buffer<int32_t> sums_;                     // [columns] of the numbers of a column
  const int64_t ld_left_;
  Buffer<uint32_t> left_;     // [rows, ld_left_] activations as the format takes them
  Buffer<float> left_scale_;  // [rows]
  Buffer<float> out_;         // [rows, ld_out()]

 public:
  // w [groups units, k], for `rows` rows; bias [groups units] or null.
  SmallMatrix(const fastrnn::SmallWeight& w, bool wide, bool tiles, int64_t groups, int64_t units,
              int64_t k, int64_t rows, const float* bias)
      : weight_(w),
        wide_(wide),
        tiles_(kByteTiles && tiles && w.format == Format::kInt8 &&
               fastrnn::cpu::byte_tiles_pay(rows, wide)),
        groups_(groups),
        units_(units),
        k_(k),
        rows_(tiles_ ? round_up(rows, kLaneWords) : rows),
        registers_(round_up(groups * ceil_div(units, kLaneWords), kHalfPanel)),
        packed_(format([&](auto f) { return depth<decltype(f)>() * columns(); })),
        scale_(columns()),
        bias_(columns()),
        sums_(columns()),
        ld_left_(format([&](auto f) { return decltype(f)::words(k); })),
        left_(rows_ * ld_left_),
        left_scale_(rows_),
        out_(rows * ld_out()) {
    if (w.data) format([&](auto f) { return pack<decltype(f)>(bias), 0; });
  }

  // Takes a row of the left-hand matrix, [k].
  void take(int64_t row, const float* x) {
    format([&](auto f) { return take<decltype(f)>(row, x), 0; });
  }

  // The product of the first rows that were taken, its panels in one order or the other: of weights
  // as large as the cache, what was read last is still there.
  void multiply(int64_t rows, bool up) {
    const int64_t panels = ceil_div(registers_, kPanel);
#if defined(FASTRNN_DOT_TILES)
    std::optional<ByteTilesInUse> in_use;
    if (tiles_ && fastrnn::cpu::byte_tiles_pay(rows, wide_)) in_use.emplace();
#endif
    format([&](auto f) {
      for (int64_t p = 0; p < panels; ++p)
        panel<decltype(f)>((up ? p : panels - 1 - p) * kPanel, rows);
      return 0;
    });
  }

  // Unit `unit` of a group in a row of the product; a multiple of kLaneWords, and a register of
  // them may be read.
  const float* at(int64_t row, int64_t group, int64_t unit) const {
    return out_ + row * ld_out() + group * round_up(units_, kLaneWords) + unit;
  }

 private:
  int64_t columns() const { return registers_ * kLaneWords; }
  int64_t ld_out() const { return columns() + kLaneWords; }  // no multiple of 4 KiB, see schedule.h
  template <class F>
  int64_t words() const {
    return ceil_div(k_, F::kTerms);
  }
  // Words of a column with the zeros that follow.
  template <class F>
  int64_t depth() const {
    return kByteTiles && tiles_ ? round_up(words<F>(), kLaneWords) : words<F>();
  }
  int64_t in_panel(int64_t first) const { return min(kPanel, registers_ - first); }
  template <class F>
  typename F::Number* panel_at(int64_t first) const {
    return reinterpret_cast<typename F::Number*>(packed_ + first * kLaneWords * depth<F>());
  }

  template <class Body>
  int64_t format(Body&& body) const {
    switch (weight_.format) {
      case Format::kFloat:
        return body(Reals<float>());
      case Format::kBf16:
        return body(Reals<Bf16>());
      case Format::kF16:
        return body(Reals<fastrnn::F16>());
      default:
        return wide_ ? body(Bytes<true>()) : body(Bytes<false>());
    }
  }

  template <class F>
  void pack(const float* bias) {
    using W = typename F::Number;
    constexpr int64_t kNumbers = kLaneWords * F::kTerms;  // of a register
    memset(packed_, 0, depth<F>() * columns() * sizeof(uint32_t));
    memset(left_, 0, rows_ * ld_left_ * sizeof(uint32_t));
    for (Buffer<float>* zero : {&scale_, &bias_}) memset(*zero, 0, columns() * sizeof(float));
    memset(sums_, 0, columns() * sizeof(int32_t));
    for (int64_t row = 0; row < groups_ * units_; ++row) {
      const int64_t column = row / units_ * round_up(units_, kLaneWords) + row % units_;
      const int64_t first = column / kLaneWords / kPanel * kPanel;  // register of the panel
      W* const to = panel_at<F>(first) + (column / kLaneWords - first) * kNumbers;
      const W* const from = static_cast<const W*>(weight_.data) + row * k_;
      for (int64_t i = 0; i < k_; ++i) {
        to[i / F::kTerms * in_panel(first) * kNumbers +
           F::place(column % kLaneWords, i % F::kTerms)] = from[i];
        if constexpr (F::kQuantised) sums_[column] += from[i];
      }
      if (F::kQuantised) scale_[column] = weight_.scale[row];
      if (bias) bias_[column] = bias[row];
    }
  }

  template <class F>
  void take(int64_t row, const float* x) {
    uint32_t* const to = left_ + row * ld_left_;
    if constexpr (F::kQuantised) {
      left_scale_[row] = quantise<F>(x, to);
    } else {
      memcpy(to, x, k_ * sizeof(float));
    }
  }

  // The activations as whole numbers of a unit, which is returned: zero of a row that is as good as
  // zero, NaN of one that holds a number which is not finite.
  template <class F>
  float quantise(const float* x, uint32_t* to) {
    constexpr float kLeast = 1e-30f, kRound = Exp<float>::kRound;
    const auto each = [&](auto&& body) __attribute__((always_inline)) {
      int64_t i = 0;
      for (; i + kLaneWords <= k_; i += kLaneWords) body(i, load<Floats>(x + i));
      if (i < k_) body(i, load_part<Floats>(x + i, k_ - i));
    };
    // Without their signs floats compare as their bits do, infinity and NaN above all others.
    Words most{};
    each([&](int64_t, Floats v) __attribute__((always_inline)) {
      const Words size = bit_cast<Words>(v) & 0x7fffffffu;
      most = select(size > most, size, most);
    });
    uint32_t lane[kLaneWords], bits = 0;
    memcpy(lane, &most, sizeof(lane));
    for (const uint32_t l : lane) bits = l > bits ? l : bits;
    const float largest = bit_cast<float>(bits);
    const float units = static_cast<float>(
        wide_ ? max(1, min(32767, std::numeric_limits<int32_t>::max() / (127 * k_))) : 127);
    const Floats factor = set1<Floats>(largest < kLeast ? 0 : units / largest);
    each([&](int64_t i, Floats v) __attribute__((always_inline)) {
      const Words rounded = bit_cast<Words>(v * factor + kRound);
      F::store_activations(to, i, k_,
                           bit_cast<Ints>(rounded - bit_cast<Words>(set1<Floats>(kRound))));
    });
    return (largest < kLeast ? 0 : largest / units) + (largest - largest);
  }

  // Whether the sums of so many rows and registers of a panel stay in registers, of which a
  // product takes two for itself.
  template <class F>
  static constexpr bool fits(int rows, int panel) {
    return rows * (panel * F::kSums + F::kLeft) + F::kRight + 2 <= FASTRNN_REGISTERS;
  }
  template <class F>
  static constexpr int most_rows() {
    int rows = 4;
    while (rows > 1 && !fits<F>(rows, kHalfPanel)) --rows;
    return rows;
  }

  template <class F>
  void panel(int64_t first, int64_t rows) {
    constexpr int kMost = most_rows<F>();
    int64_t row = 0;
#if defined(FASTRNN_DOT_TILES)
    if constexpr (F::kQuantised) row = on_tiles<F>(first, rows);
#endif
    for (; row < rows; row += kMost)
      each_constant<kMost>([&](auto other) {
        if (min(kMost, rows - row) == other + 1) together<F, other + 1>(first, row);
      });
  }
  template <class F, int R>
  void together(int64_t first, int64_t row) {
    const int64_t count = in_panel(first);
    if constexpr (R == 1 && fits<F>(1, kPanel)) {
      if (count == kPanel) return tile<F, 1, kPanel>(first, 0, row);
    }
    for (int64_t v = 0; v < count; v += kHalfPanel) tile<F, R, kHalfPanel>(first, v, row);
  }

  // NV registers of a panel, the v'th on, for R rows. Inlined beside others its loop spills.
  template <class F, int R, int NV>
  FASTRNN_NOINLINE void tile(int64_t first, int64_t v, int64_t row) {
    const int64_t column = (first + v) * kLaneWords;
    typename F::Sum sum[R][NV];
    each<R, NV>([&](int r, int i) __attribute__((always_inline)) {
      if constexpr (F::kQuantised)
        sum[r][i] = F::first(load_ints(sums_ + column + i * kLaneWords));
      else
        sum[r][i] = Floats{};  // not the bias, for which GCC 12 spills on 64-bit ARM
    });
    constexpr int64_t kNumbers = kLaneWords * F::kTerms;
    const int64_t words = this->words<F>(), step = in_panel(first) * kNumbers;
    const typename F::Number* w = panel_at<F>(first) + v * kNumbers;
    const uint32_t* const left = left_ + row * ld_left_;
    for (int64_t i = 0; i < words; ++i, w += step) {
      typename F::Left x[R];
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) x[r] = F::left(left + r * ld_left_, i, k_);
      FASTRNN_UNROLL
      for (int n = 0; n < NV; ++n) {
        const typename F::Right right = F::right(w + n * kNumbers);
        FASTRNN_UNROLL
        for (int r = 0; r < R; ++r) F::add(sum[r][n], x[r], right);
      }
    }
    each<R, NV>([&](int r, int i) __attribute__((always_inline)) {
      const int64_t at = column + i * kLaneWords;
      Floats value;
      if constexpr (F::kQuantised)
        value = scaled<F>(sum[r][i], load<Floats>(scale_ + at), row + r);
      else
        value = sum[r][i];
      store<Floats>(out_ + (row + r) * ld_out() + at, load<Floats>(bias_ + at) + value);
    });
  }
  template <class F>
  FASTRNN_INLINE Floats scaled(const typename F::Sum& sum, Floats scale, int64_t row) const {
    return convert_to<Floats>(F::total(sum)) * scale * left_scale_[row];
  }

#if defined(FASTRNN_DOT_TILES)
  // Multiplies as many of the rows as gain by it, and returns how many.
  template <class F>
  int64_t on_tiles(int64_t first, int64_t rows) {
    int64_t row = 0;
    while (tiles_ && fastrnn::cpu::byte_tiles_pay(rows - row, wide_)) {
      if constexpr (F::kParts > 1)
        row = on_tiles<F, 1, 1>(first, row, rows);
      else if (rows - row > kTile)
        row = on_tiles<F, 2, 1>(first, row, rows);
      else
        row = on_tiles<F, 1, 2>(first, row, rows);
    }
    return row;
  }
  // Tiles of rows from `row` on, and NV registers at once. Returns the row after them.
  template <class F, int Tiles, int NV>
  int64_t on_tiles(int64_t first, int64_t row, int64_t rows) {
    constexpr int64_t kNumbers = kLaneWords * F::kTerms;
    const int64_t count = in_panel(first), end = min(rows, row + Tiles * kTile);
    for (int64_t v = 0; v < count; v += NV) {
      const int64_t column = (first + v) * kLaneWords;
      ByteSums<F, Tiles, NV> sums;
      sums(left_ + row * ld_left_, ld_left_, panel_at<F>(first) + v * kNumbers, count * kNumbers,
           k_, sums_ + column);
      for (int n = 0; n < NV; ++n) {
        const int64_t at = column + n * kLaneWords;
        const Floats scale = load<Floats>(scale_ + at), bias = load<Floats>(bias_ + at);
        for (int64_t r = row; r < end; ++r)
          store<Floats>(out_ + r * ld_out() + at, bias + scaled<F>(sums.at(r - row, n), scale, r));
      }
    }
    return end;
  }
#endif
  static Ints load_ints(const int32_t* p) {
    Ints v;
    memcpy(&v, p, sizeof(v));
    return v;
  }
  template <int R, int NV, class Body>
  FASTRNN_INLINE static void each(Body&& body) {
    FASTRNN_UNROLL
    for (int r = 0; r < R; ++r) {
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) body(r, v);
    }
  }
};

}  // namespace FASTRNN_NAMESPACE
