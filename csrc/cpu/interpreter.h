// Runs the code of a program (program.h) on blocks of registers: each instruction goes over a whole
// block before the next one, so that what it costs to read it is shared.
//
// A block holds some units of one row, or one register of units of several rows. Planes are worked
// on where they lie, if the block's registers are equally far apart there and all of their lanes
// exist; others are copied to a place of their own and back.
#pragma once

#include "cpu/functions.h"
#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

using fastrnn::Code;
using fastrnn::Instruction;
using fastrnn::Op;

// The registers of a block in a plane: `step` numbers apart, 0 if all are one.
template <class T>
struct Plane {
  T* at;
  int64_t step;
};

// Where the numbers of a plane lie.
template <class T>
struct Lies {
  enum Kind : uint8_t {
    kAbsent,  // written and never read
    kPadded,  // T, rows that go on to a whole register
    kExact,   // T
    kNarrow,  // Bf16
    kSplat,   // T, one number for all units of a row
    kNarrowSplat
  };
  void* first;        // row 0, unit 0
  int64_t row, unit;  // numbers from a row, and from a register of units, to the next
  Kind kind;
  void* const* rows;  // where rows begin, if they are not equally far apart, or null
};

template <class T>
class Interpreter {
  using V = Vec<T>;
  static constexpr int64_t kLane = kLanes<T>;
  static constexpr int64_t kMost = 32;  // registers of a block
  static constexpr int64_t kKept = 2;

  const Code& code_;
  const int64_t inputs_;  // planes that are given, those after them are made
  const int64_t units_, registers_;
  const bool whole_rows_;  // of which a block takes one: units meet
  const int64_t block_;
  const int64_t all_;        // planes
  Buffer<Plane<T>> planes_;  // [1 + kKept, all] those of a block, and of blocks that come again
  Buffer<T> staged_, values_;
  bool padded_ = false;
  Buffer<Lies<T>> lies_;

 public:
  // For at most `rows` rows of `units`; `inputs` of the code's planes are given.
  Interpreter(const Code& code, int64_t inputs, int64_t rows, int64_t units, bool whole_rows)
      : code_(code),
        inputs_(inputs),
        units_(units),
        registers_(ceil_div(units, kLane)),
        whole_rows_(whole_rows),
        block_(whole_rows ? registers_ : min(kMost, max(rows, registers_))),
        all_(code.planes + code.constant_count + code.row_temps + code.temps),
        planes_((1 + kKept) * all_),
        staged_(code.planes * block_ * kLane),
        values_((code.constant_count + code.row_temps + code.temps * block_) * kLane),
        lies_(code.planes) {
    T* at = values_;
    Plane<T>* plane = planes_ + code.planes;
    for (int64_t i = 0; i < code.constant_count; ++i, at += kLane) {
      store<V>(at, set1<V>(static_cast<T>(code.constants[i])));
      *plane++ = {at, 0};
    }
    for (int64_t i = 0; i < code.row_temps; ++i, at += kLane) *plane++ = {at, 0};
    for (int64_t i = 0; i < code.temps; ++i, at += block_ * kLane) *plane++ = {at, kLane};
  }

  // Where the planes of the code lie, in its order, to be set before `run`.
  Lies<T>* lies() const { return lies_; }

  // All instructions for some rows and some registers of units. padded: all planes are such.
  void run(int64_t rows, const Range& registers, bool padded) {
    padded_ = padded;
    const int64_t count = registers.count();
    if (whole_rows_) {
      for (int64_t n = 0; n < rows; ++n) along_units(n, registers);
    } else if (rows > count) {
      for (int64_t r = registers.first; r < registers.last; ++r)
        for (int64_t n = 0; n < rows; n += kMost) along_rows(n, min(kMost, rows - n), r);
    } else {
      for (int64_t n = 0; n < rows; ++n)
        for (int64_t r = registers.first; r < registers.last; r += kMost)
          along_units(n, {r, min(registers.last, r + kMost)});
    }
  }

  // Whether `run` takes these in one block, if all planes are padded.
  bool at_once(int64_t rows, const Range& registers) const {
    const int64_t count = registers.count();
    return rows == 1 ? whole_rows_ || count <= kMost : !whole_rows_ && count == 1 && rows <= kMost;
  }
  // Keeps the planes of the last run, which was of one block, as those of block k < kKept.
  void keep(int64_t k) { memcpy(planes_ + (1 + k) * all_, planes_, all_ * sizeof(Plane<T>)); }
  // The planes of that block, which may be moved, and another run of it.
  Plane<T>* kept(int64_t k) const { return planes_ + (1 + k) * all_; }
  void run_kept(int64_t k, int64_t rows, const Range& registers) const {
    execute(kept(k), rows == 1 ? registers.count() : rows, valid(registers.last - 1));
  }

 private:
  struct Place {
    int64_t n, r;
  };
  bool partial(int64_t last) const { return last * kLane > units_; }
  int64_t valid(int64_t r) const { return min(kLane, units_ - r * kLane); }

  static T* at(const Lies<T>& l, int64_t n, int64_t r) {
    return static_cast<T*>(l.rows ? l.rows[n] : static_cast<T*>(l.first) + n * l.row) + r * l.unit;
  }
  static Bf16* narrow_at(const Lies<T>& l, int64_t n, int64_t r) {
    return static_cast<Bf16*>(l.rows ? l.rows[n] : static_cast<Bf16*>(l.first) + n * l.row) +
           r * l.unit;
  }

  V fetch(const Lies<T>& l, int64_t n, int64_t r) const {
    using L = Lies<T>;
    const Lane<T> lane(0, valid(r));
    if (l.kind == L::kSplat) return set1<V>(*at(l, n, 0));
    if constexpr (std::is_same_v<T, float>) {
      if (l.kind == L::kNarrowSplat) {
        const auto number = load<T>(narrow_at(l, n, 0));
        return set1<V>(number);
      }
      if (l.kind == L::kNarrow) return lane.load_from(narrow_at(l, n, r));
    }
    return lane.load_from(at(l, n, r));
  }
  void put(const Lies<T>& l, int64_t n, int64_t r, V v) const {
    const Lane<T> lane(0, valid(r));
    if constexpr (std::is_same_v<T, float>)
      if (l.kind == Lies<T>::kNarrow) return lane.store_to(narrow_at(l, n, r), v);
    lane.store_to(at(l, n, r), v);
  }

  // A block of registers, of which `place` says the row and the register: planes that
  // can be worked on where they lie are at `direct`.
  template <class Direct, class Where>
  FASTRNN_INLINE void block(int64_t count, int64_t last_valid, Direct&& direct, Where&& place) {
    using L = Lies<T>;
    const Plane<T>* const own = planes_;
    for (int64_t i = 0; i < code_.planes; ++i) {
      const L& l = lies_[i];
      if (i < inputs_ && !code_.reads[i]) continue;
      if (direct(l, planes_[i])) continue;
      T* const to = staged_ + i * block_ * kLane;
      planes_[i] = {to, kLane};
      for (int64_t k = 0; k < count && i < inputs_; ++k) {
        const auto [n, r] = place(k);
        store<V>(to + k * kLane, fetch(l, n, r));
      }
    }
    execute(own, count, last_valid);
    for (int64_t i = inputs_; i < code_.planes; ++i) {
      const T* const from = staged_ + i * block_ * kLane;
      if (planes_[i].at != from || lies_[i].kind == L::kAbsent) continue;
      for (int64_t k = 0; k < count; ++k) {
        const auto [n, r] = place(k);
        put(lies_[i], n, r, load<V>(from + k * kLane));
      }
    }
  }

  void along_units(int64_t n, Range registers) {
    const int64_t whole = registers.last - partial(registers.last);
    const bool exact_part = whole < registers.last && !padded_ && !whole_rows_;
    const bool parts = exact_part && whole > registers.first;
    if (parts) {  // the last register by itself
      along_units(n, {registers.first, whole});
      return along_units(n, {whole, registers.last});
    }
    using L = Lies<T>;
    const bool exact = !partial(registers.last);
    block(
        registers.count(), valid(registers.last - 1),
        [&](const L& l, Plane<T>& plane) {
          if (l.kind != L::kPadded && !(l.kind == L::kExact && exact)) return false;
          plane = {at(l, n, registers.first), l.unit};
          return true;
        },
        [&](int64_t k) { return Place{n, registers.first + k}; });
  }
  void along_rows(int64_t n, int64_t count, int64_t r) {
    using L = Lies<T>;
    const bool exact = !partial(r + 1);
    block(
        count, valid(r),
        [&](const L& l, Plane<T>& plane) {
          if (l.rows || (l.kind != L::kPadded && !(l.kind == L::kExact && exact))) return false;
          plane = {at(l, n, r), l.row};
          return true;
        },
        [&](int64_t k) { return Place{n + k, r}; });
  }

  // d = f(a...) for n registers.
  template <class F, class... Planes>
  FASTRNN_INLINE static void each(Plane<T> d, int64_t n, F&& f, Planes... a) {
    for (; n > 0; --n, d.at += d.step, ((a.at += a.step), ...)) store<V>(d.at, f(load<V>(a.at)...));
  }
  // The same of a long chain of instructions, of several registers at a time.
  template <class F, class... Planes>
  FASTRNN_INLINE static void chain(Plane<T> d, int64_t n, F&& f, Planes... a) {
    int64_t i = 0;
    const auto some = [&](auto count) __attribute__((always_inline)) {
      constexpr int R = count;
      const auto y = f(each_of<R>([&](int k) { return load<V>(a.at + (i + k) * a.step); })...);
      FASTRNN_UNROLL
      for (int k = 0; k < R; ++k) store<V>(d.at + (i + k) * d.step, y.v[k]);
      i += R;
    };
    while (i + 4 <= n) some(std::integral_constant<int, 4>{});
    if (i + 2 <= n) some(std::integral_constant<int, 2>{});
    if (i < n) some(std::integral_constant<int, 1>{});
  }
  static void sum(Plane<T> a, Plane<T> d, int64_t n, int64_t last_valid) {
    V total{};
    for (int64_t i = 0; i + 1 < n; ++i) total += load<V>(a.at + i * a.step);
    T lane[kLane], all = 0;
    store<V>(lane, load<V>(a.at + (n - 1) * a.step));
    for (int64_t l = last_valid; l < kLane; ++l) lane[l] = 0;
    total += load<V>(lane);
    store<V>(lane, total);
    for (const T each : lane) all += each;
    store<V>(d.at, set1<V>(all));
  }

  // Every instruction for a block of n registers, the last of which has `last_valid` units.
  FASTRNN_NOINLINE void execute(const Plane<T>* p, int64_t n, int64_t last_valid) const {
#define FASTRNN_DO(kind, name, operands, ...)                                                \
  case Op::name:                                                                             \
    kind(                                                                                    \
        d, count,                                                                            \
        [](FASTRNN_TAKES_##operands) __attribute__((always_inline)) { return __VA_ARGS__; }, \
        FASTRNN_##operands);                                                                 \
    break;
#define FASTRNN_A p[i.a]
#define FASTRNN_AB p[i.a], p[i.b]
#define FASTRNN_ABC p[i.a], p[i.b], p[i.c]
#define FASTRNN_ABCE p[i.a], p[i.b], p[i.c], p[i.d]
#define FASTRNN_TAKES_A auto a
#define FASTRNN_TAKES_AB auto a, auto b
#define FASTRNN_TAKES_ABC auto a, auto b, auto c
#define FASTRNN_TAKES_ABCE auto a, auto b, auto c, auto e
    for (int64_t k = 0; k < code_.length; ++k) {
      const Instruction i = code_.instructions[k];
      const Plane<T> d = p[i.dst];
      const int64_t count = i.op & Instruction::kOnce ? 1 : n;
      switch (static_cast<Op>(i.op & ~Instruction::kOnce)) {
        FASTRNN_DO(each, add, AB, a + b)
        FASTRNN_DO(each, sub, AB, a - b)
        FASTRNN_DO(each, mul, AB, a * b)
        FASTRNN_DO(each, div, AB, a / b)
        FASTRNN_DO(each, neg, A, -a)
        FASTRNN_DO(each, fma, ABC, fma(a, b, c))
        FASTRNN_DO(each, fms, ABC, fma(a, b, -c))
        FASTRNN_DO(each, fnma, ABC, fma(-a, b, c))
        FASTRNN_DO(each, muladdmul, ABCE, fma(a, b, c * e))
        FASTRNN_DO(each, one_minus, A, 1 - a)
        FASTRNN_DO(each, dsigmoid, AB, a * b * (1 - b))
        FASTRNN_DO(each, dtanh, AB, a * tanh_slope(b))
        FASTRNN_DO(each, copy, A, a)
        FASTRNN_DO(chain, sigmoid, A, sigmoid(a))
        FASTRNN_DO(chain, tanh, A, tanh(a))
        FASTRNN_DO(chain, sigmoid_add, AB, sigmoid(a + b))
        FASTRNN_DO(chain, sigmoid_fma, ABC, sigmoid(fma(a, b, c)))
        FASTRNN_DO(chain, tanh_add, AB, tanh(a + b))
        FASTRNN_DO(chain, tanh_fma, ABC, tanh(fma(a, b, c)))
        FASTRNN_DO(each, exp, A, exp(a))
        FASTRNN_DO(each, expm1, A, expm1(a))
        FASTRNN_DO(each, log, A, log(a))
        FASTRNN_DO(each, log1p, A, log1p(a))
        FASTRNN_DO(each, sqrt, A, by_lane(a, [](T x) { return T(__builtin_sqrt(x)); }))
        FASTRNN_DO(each, abs, A, absolute(a))
        FASTRNN_DO(each, max, AB, maximum(a, b))
        FASTRNN_DO(each, min, AB, minimum(a, b))
        FASTRNN_DO(each, select_lt, ABCE, select(a < b, c, e))
        FASTRNN_DO(each, select_le, ABCE, select(a <= b, c, e))
        FASTRNN_DO(each, select_eq, ABCE, select(a == b, c, e))
        case Op::sum:
          sum(p[i.a], d, n, last_valid);
          break;
          FASTRNN_DO(each, sin, A, by_lane(a, [](T x) { return T(__builtin_sin(x)); }))
          FASTRNN_DO(each, cos, A, by_lane(a, [](T x) { return T(__builtin_cos(x)); }))
          FASTRNN_DO(each, erf, A, by_lane(a, [](T x) { return T(__builtin_erf(x)); }))
          FASTRNN_DO(each, floor, A, by_lane(a, [](T x) { return T(__builtin_floor(x)); }))
          FASTRNN_DO(each, round, A, by_lane(a, [](T x) { return T(__builtin_nearbyint(x)); }))
      }
    }
#undef FASTRNN_DO
#undef FASTRNN_A
#undef FASTRNN_AB
#undef FASTRNN_ABC
#undef FASTRNN_ABCE
#undef FASTRNN_TAKES_A
#undef FASTRNN_TAKES_AB
#undef FASTRNN_TAKES_ABC
#undef FASTRNN_TAKES_ABCE
  }
};

}  // namespace FASTRNN_NAMESPACE
