// A weight matrix, and the panels that products go through.
#pragma once

#include "cpu/gemm.h"

namespace FASTRNN_NAMESPACE {

// A number of a matrix in memory as an operand.
template <class O, class S>
FASTRNN_INLINE O as_operand(const S* p) {
  if constexpr (std::is_same_v<S, O>) {
    return *p;
  } else if constexpr (std::is_same_v<O, Bf16>) {
    O rounded;
    store<S>(&rounded, *p);
    return rounded;
  } else {
    return load<O>(p);
  }
}
// A register's worth of a row, operands of one lane beside each other.
template <class O, class S>
FASTRNN_INLINE Operands<O> from_row(const S* p) {
  if constexpr (std::is_same_v<S, O>) {
    return load_operands<O>(p);
  } else if constexpr (kTerms<O> == 2) {
    O rounded[2 * kLanes<O>];
    store<Vec<S>>(rounded, load<Vec<S>>(p));
    store<Vec<S>>(rounded + kLanes<O>, load<Vec<S>>(p + kLanes<O>));
    return load_operands<O>(rounded);
  } else {
    return load<Vec<O>>(p);
  }
}
// A register's worth of columns, from kTerms rows, `column` on.
template <class O, class S>
FASTRNN_INLINE Operands<O> from_columns(const S* const (&row)[kTerms<O>], int64_t column) {
  if constexpr (kTerms<O> == 1)
    return from_row<O>(row[0] + column);
  else
    return pairs(row[0] + column, row[1] + column);
}

// A right-hand matrix of type S and its panels. `Transposed` says how it lies: the columns of the
// product are rows of w [columns, k] (a weight in a forward product), or columns of w [k, columns].
// Groups > 1 interleaves: a panel takes NV / Groups registers from each of Groups blocks of
// `columns` columns, so that all gates of the same units meet in one tile. In a last panel the few
// columns of each group that are left lie right behind each other, if they fill fewer registers so.
// Groups = 0 leaves their number to the constructor: the registers of a row are then those of each
// group in turn, for kLanes columns after the other, whichever panels they fall into.
// Without `keep`, for a matrix that is used for a few rows only, panels are read as they lie, which
// takes k-major columns of single operands; others, and a last one that is not full, are packed,
// each time one is asked for, into the caller's scratch.
template <class S, class O, int NV, int Groups, bool Transposed>
struct Panels {
  static constexpr int kLane = kLanes<O>, kStep = kTerms<O>;
  static constexpr bool kMixed = Groups == 0;
  static constexpr int kPerGroup = kMixed ? 1 : NV / max(1, Groups);
  static constexpr int64_t kUnits = kPerGroup * kLane;           // columns of each group in a panel
  static constexpr bool kCloses = Groups > 2 && kPerGroup == 1;  // the gaps between groups
  static constexpr bool kAsItLies = std::is_same_v<S, O> && kStep == 1;

  const S* const w;
  const int64_t k, columns;  // rows of w are `ld` apart
  const int64_t ld;
  const int64_t groups;
  Buffer<O> packed;  // [count(), k, kWidth], or null

  Panels(const S* weight, int64_t depth, int64_t width, bool keep, int64_t number = Groups)
      : w(weight),
        k(depth),
        columns(width),
        ld(Transposed ? depth : width),
        groups(number),
        packed(keep ? count() * stride() : 0) {}

  int64_t registers() const { return groups * ceil_div(columns, kLane); }
  int64_t count() const {
    return kMixed ? ceil_div(registers(), NV) : w ? ceil_div(columns, kUnits) : 0;
  }
  int64_t stride() const { return round_up(k, kGrain<O>) * kWidth<O, NV>; }
  // Numbers from a group's to the next one's in a row of the panel with this column.
  FASTRNN_INLINE int64_t apart(int64_t column) const {
    const int64_t left = columns % kUnits;
    return kCloses && column >= columns - left && closed() < NV ? left : kUnits;
  }
  int64_t scratch() const {
    return packed || !w || (kAsItLies && columns % kUnits == 0) ? 0 : stride();
  }

  // Where a panel begins, if it is kept and far.
  const O* far(int64_t panel) const {
    const bool near = count() * stride() * int64_t{sizeof(O)} <= kNearBytes;
    return near || !packed ? nullptr : packed + panel * stride();
  }
  Panel<O> get(int64_t panel) const { return of_packed(panel, packed + panel * stride()); }
  Panel<O> get(int64_t panel, O* scratch) const {
    static_assert(!Transposed, "panels of a transposed matrix are kept");
    if (packed) return get(panel);
    if constexpr (kAsItLies)
      if ((panel + 1) * kUnits <= columns) return {{w + panel * kUnits, ld}};
    pack(panel, scratch);
    return of_packed(panel, scratch);
  }
  void keep(int64_t panel) { pack(panel, packed + panel * stride()); }

  // Zero where there are no columns.
  void pack(int64_t panel, O* out) const {
    if constexpr (kMixed) return pack_mixed(panel, out);
    const bool full = w && (panel + 1) * kUnits <= columns;
    const Panel<O> to = of_packed(panel, out);
    const int64_t end = full ? round_up(k, kInParts<O> ? kGrain<O> : kStep) * to.ld : 0;
    memset(out + end, 0, (stride() - end) * sizeof(O));
    if (!w) return;
    if (const int64_t left = apart(panel * kUnits); left < kUnits) {
      for (int64_t v = 0; v * kLane < Groups * left; ++v)
        pack_register({[&](int64_t lane) {
                         const int64_t at = v * kLane + lane;
                         return at / left * columns + panel * kUnits + at % left;
                       },
                       min(kLane, Groups * left - v * kLane)},
                      out, v, to.ld);
      return;
    }
    for (int g = 0; g < Groups; ++g)
      for (int u = 0; u < kPerGroup; ++u) {
        const int64_t column = panel * kUnits + u * kLane;
        const int64_t valid = min(kLane, columns - column);
        if (valid > 0) pack_register({g * columns + column, valid}, out, g * kPerGroup + u, to.ld);
      }
  }

 private:
  // The columns of w for a register: `valid` of them, and nothing for the lanes after these.
  struct Columns {
    int64_t of[kLane], valid;

    Columns(int64_t first, int64_t count)
        : Columns([=](int64_t lane) { return first + lane; }, count) {}
    template <class Of>
    Columns(Of&& column_of, int64_t count) : valid(count) {
      for (int64_t lane = 0; lane < kLane; ++lane) of[lane] = lane < valid ? column_of(lane) : 0;
    }
    bool adjoin() const { return valid == kLane && of[kLane - 1] - of[0] == kLane - 1; }
  };

  // Registers of a last panel without gaps.
  int64_t closed() const { return max(2, ceil_div(Groups * (columns % kUnits), kLane)); }
  void pack_mixed(int64_t panel, O* out) const {
    const Panel<O> to = of_packed(panel, out);
    const int64_t valid = w ? min(NV, registers() - panel * NV) : 0;
    const int64_t end = valid == NV ? round_up(k, kInParts<O> ? kGrain<O> : kStep) * to.ld : 0;
    memset(out + end, 0, (stride() - end) * sizeof(O));
    for (int64_t v = 0; v < valid; ++v) {
      const int64_t at = panel * NV + v, column = at / groups * kLane;
      pack_register({at % groups * columns + column, min(kLane, columns - column)}, out, v, to.ld);
    }
  }
  Panel<O> of_packed(int64_t panel, const O* data) const {
    if constexpr (NV == kWide && Groups <= 1) {
      const int64_t left = (kMixed ? registers() : ceil_div(columns, kLane)) - panel * NV;
      if (left < NV) return {{data, max(2, left) * kLane}, static_cast<int>(max(2, left))};
    }
    if (apart(panel * kUnits) < kUnits)
      return {{data, closed() * kLane}, static_cast<int>(closed())};
    return {{data, kWidth<O, NV>}};
  }
  // One register's worth of columns of a panel, register v, all k, zero beyond the valid ones.
  void pack_register(const Columns& from, O* panel, int64_t v, int64_t ld_out) const {
    if constexpr (kInParts<O>)
      return Transposed ? pack_rows_in_parts(from, panel, v, ld_out)
                        : pack_parts(k, panel, ld_out, v, [&](int64_t i) {
                            return Lane<S>(0, from.valid).load_from(w + i * ld + from.of[0]);
                          });
    else
      pack_operands(from, panel + v * kLane * kStep, ld_out);
  }
  void pack_rows_in_parts(const Columns& from, O* panel, int64_t v, int64_t ld_out) const {
    alignas(64) O rows[kLane * kGrain<O>];
    for (int64_t i = 0; i < k; i += kGrain<O>) {
      const int64_t count = min(k - i, kGrain<O>);
      if (from.valid < kLane || count < kGrain<O>) memset(rows, 0, sizeof(rows));
      for (int64_t l = 0; l < from.valid; ++l)
        copy(rows + l * kGrain<O>, w + from.of[l] * ld + i, count);
      pack_block(rows, panel + i * ld_out, ld_out, v);
    }
  }
  void pack_operands(const Columns& columns, O* out, int64_t ld_out) const {
    constexpr int64_t kBlock = kLane * kStep;
    int64_t i = 0;
    if (columns.adjoin()) {
      if constexpr (Transposed) {
        const S* const from = w + columns.of[0] * ld;
        for (; i + kBlock <= k; i += kBlock) {
          Operands<O> block[kLane];
          FASTRNN_UNROLL
          for (int l = 0; l < kLane; ++l) block[l] = from_row<O>(from + l * ld + i);
          transpose<Scalar<Operands<O>>>(block);
          FASTRNN_UNROLL
          for (int l = 0; l < kLane; ++l)
            store_operands<O>(out + (i + l * kStep) * ld_out, block[l]);
        }
      } else {
        for (; i + kStep <= k; i += kStep) {
          const S* row[kStep];
          for (int t = 0; t < kStep; ++t) row[t] = w + (i + t) * ld;
          store_operands<O>(out + i * ld_out, from_columns<O>(row, columns.of[0]));
        }
      }
    }
    for (; i < k; i += kStep)
      for (int64_t l = 0; l < kLane; ++l)
        for (int t = 0; t < kStep; ++t) {
          const int64_t column = columns.of[l];
          const int64_t at = Transposed ? column * ld + i + t : (i + t) * ld + column;
          out[i * ld_out + l * kStep + t] =
              l < columns.valid && i + t < k ? as_operand<O>(w + at) : O{};
        }
  }
};

}  // namespace FASTRNN_NAMESPACE
