// Sums over rows, which training ends in: products of a column of one matrix with a column of
// another, the gradient of a weight, and of columns, the gradient of a bias.
#pragma once

#include "cpu/panels.h"

namespace FASTRNN_NAMESPACE {

// Columns [0, count) of a, of `depth` rows, as the left-hand matrix that `outer` takes: R
// numbers or pairs of them after the other, k-major, or where there are tiles each a row of `most`
// numbers.
template <int64_t R, class O, class A>
void arrange(const A* a, int64_t lda, int64_t depth, int64_t count, O* left, int64_t most) {
  constexpr int kStep = kTerms<O>, kLane = kLanes<O>;
  if constexpr (kInParts<O>) {
    for (int64_t k = 0; k < depth; k += kGrain<O>)
      for (int64_t r = 0; r < count; r += kLane)
        transpose_parts(a + k * lda + r, lda, depth - k, left + r * most + k, most);
  } else if constexpr (kTiled<O>) {
    for (int64_t k = 0; k < depth; k += kGrain<O>)
      for (int64_t r = 0; r < count; r += kLane) {
        Operands<O> square[kLane];
        for (int l = 0; l < kLane; ++l) {
          const O* const row = a + (k + l * kStep) * lda + r;
          const int64_t valid = depth - (k + l * kStep);
          square[l] = valid > 1    ? pairs(row, row + lda)
                      : valid == 1 ? Operands<O>(load_bits<Vec<O>>(row))
                                   : Operands<O>{};
        }
        transpose<Scalar<Operands<O>>>(square);
        for (int l = 0; l < kLane; ++l) store_operands<O>(left + (r + l) * most + k, square[l]);
      }
  } else if constexpr (kStep == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t r = 0; r < count; r += R)
        memcpy(left + r * most + k * R, a + k * lda + r, R * sizeof(O));
  } else {
    for (int64_t k = 0; k < depth; k += kStep) {
      const O* row[kStep];
      for (int t = 0; t < kStep; ++t) row[t] = a + min(k + t, depth - 1) * lda;
      for (int64_t r = 0; r < count; r += R) {
        O* const out = left + r * most + k * R;
        for (int l = 0; l < R; ++l)
          for (int t = 0; t < kStep; ++t) out[l * kStep + t] = k + t < depth ? row[t][r + l] : O{};
      }
    }
  }
}

// The rows of `b`, `depth` of n numbers each, as panels that are `most` rows deep.
template <int NV, class O, class RowsB>
void pack_right(int64_t depth, int64_t n, RowsB&& b, O* right, int64_t most) {
  constexpr int kStep = kTerms<O>, kLane = kLanes<O>;
  constexpr int64_t kLd = kWidth<O, NV>;
  const int64_t panels = ceil_div(n, kLd);
  if constexpr (kInParts<O>) {
    for (int64_t v = 0; v < panels * NV; ++v)
      pack_parts(depth, right + v / NV * most * kLd, kLd, v % NV,
                 [&](int64_t i) { return Lane<Compute<O>>(v * kLane, n).load_from(b(i)); });
  } else {
    for (int64_t i = 0; i < round_up(depth, kGrain<O>); i += kStep) {
      const std::remove_pointer_t<decltype(b(0))>* row[kStep];
      for (int t = 0; t < kStep; ++t) row[t] = b(min(i + t, depth - 1));
      for (int64_t p = 0; p < panels; ++p) {
        O* const out = right + (p * most + i) * kLd;
        if ((p + 1) * kLd <= n && i + kStep <= depth) {
          FASTRNN_UNROLL
          for (int v = 0; v < NV; ++v)
            store_operands<O>(out + v * kLane * kStep, from_columns<O>(row, p * kLd + v * kLane));
          continue;
        }
        for (int v = 0; v < NV; ++v) {
          const Lane<Compute<O>> lane(p * kLd + v * kLane, i < depth ? n : 0);
          Operands<O> part;
          if constexpr (kStep == 1)
            part = lane.load_from(row[0]);
          else
            part = pairs(row[0] + lane.at, i + 1 < depth ? row[1] + lane.at : nullptr, lane.valid);
          store_operands<O>(out + v * kLane * kStep, part);
        }
      }
    }
  }
}

// c[i, j] (+)= sum over k of a[k, i] b(k)[j], k in [0, depth), for a range of i and all j in [0,
// n): the gradient of a weight. Rows of a are lda apart and read as they lie, up to kTileRows - 1
// numbers further than the range; b returns the row k of the right matrix; `add` keeps what c
// holds. A piece of the sum, of at most kOuterDepth rows, begins at zero and is then added to c:
// the roundings of terms that are alike, which do not cancel, add up over a piece only.
template <class O, class A, class T, class RowsB>
void outer(int64_t k, Range range, int64_t n, const A* a, int64_t lda, RowsB&& b, T* c, bool add) {
  using V = Vec<T>;
  const auto [first, last] = range;
  if (first == last || n == 0) return;
  const int64_t ldc = n;
  constexpr int kRegisters = kTiled<O> ? kWide : kNarrow;
  constexpr int64_t kRows = kTileRows<O, kRegisters>;
  constexpr int64_t kLd = kWidth<T, kRegisters>;
  constexpr int kStep = kTerms<O>;
  // Whether rows of a are put together first: as pairs, or once it pays to read them in a row.
  const bool arranged = kStep > 1 || kTiled<O> || n > 128;
  constexpr int64_t kBlock = (96 + kRows - 1) / kRows * kRows;
  if (k == 0 && !add) memset(c + first * ldc, 0, range.count() * n * sizeof(T));
  // Pieces about equally deep: each takes all of c through the caches once more.
  const int64_t most = round_up(ceil_div(k, max(1, ceil_div(k, kOuterDepth))), kGrain<O>);
  const int64_t panels = ceil_div(n, kLd);
  Buffer<O> right(panels * most * kLd), left(arranged ? kBlock * most : 0);
  alignas(64) T tile[kRows * kLd];
  alignas(64) const T zero[kLd] = {};
  for (int64_t from = 0; from < k; from += most) {
    const int64_t depth = min(most, k - from);
    pack_right<kRegisters, O>(depth, n, [&](int64_t i) { return b(from + i); }, right, most);
    for (int64_t block = first; block < last; block += kBlock) {
      const int64_t block_rows = min(kBlock, last - block);
      if (arranged) arrange<kRows, O>(a + from * lda + block, lda, depth, block_rows, left, most);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t columns = min(kLd, n - p * kLd);
        for (int64_t r = 0; r < block_rows; r += kRows) {
          const int64_t rows = min(kRows, block_rows - r);
          T* const out = c + (block + r) * ldc + p * kLd;
          const bool keep = add || from > 0, whole = rows == kRows && columns == kLd;
          const bool at_once = whole && !keep;
          for (int64_t i = rows; i < min(rows + kRows, block_rows - r); ++i) {  // the next tile
            prefetch(out + i * ldc);
            prefetch(out + i * ldc + columns - 1);
          }
          const Rows<O> own = [&]() -> Rows<O> {
            if constexpr (kTiled<O>)
              return {left + r * most, most};
            else
              return arranged ? Rows<O>{left + r * most, kRows * kStep}
                              : Rows<O>{a + from * lda + block + r, lda};
          }();
          Micro<O>* product = &micro<O, kRegisters, kRows, !kTiled<O>>;
          if constexpr (!kTiled<O>) {
            // With 16 lanes: the last columns of a layer of 40 units, or all of an input of 16.
            if (columns <= kLanes<T>) product = &micro<O, 1, kRows, true>;
          }
          product(own.data, own.ld, {right + p * most * kLd, kLd}, depth, zero, 0,
                  at_once ? out : tile, at_once ? ldc : kLd, {});
          if (at_once) continue;
          if (whole) {
            FASTRNN_UNROLL
            for (int i = 0; i < kRows; ++i)
              for (int v = 0; v < kRegisters; ++v) {
                T* const sum = out + i * ldc + v * kLanes<T>;
                store<V>(sum, load<V>(sum) + load<V>(tile + i * kLd + v * kLanes<T>));
              }
          } else {
            for (int64_t i = 0; i < rows; ++i)
              for (int64_t j = 0; j < columns; ++j)
                out[i * ldc + j] = tile[i * kLd + j] + (keep ? out[i * ldc + j] : T(0));
          }
        }
      }
    }
  }
}

// sum[i] (+)= sum over k of a(k)[i], k in [0, depth), for a range of i: the gradient of a bias. The
// rows are added to each other first: the sum may be much larger than they are.
template <class T, class Rows>
void column_sums(int64_t k, Range range, Rows&& a, T* sum, bool add) {
  using V = Vec<T>;
  constexpr int kRegisters = 4;
  constexpr int64_t kColumns = kRegisters * kLanes<T>;
  for (int64_t i = range.first; i < range.last; i += kColumns) {
    const int64_t columns = min(kColumns, range.last - i);
    V acc[kRegisters] = {};
    if (columns == kColumns) {
      for (int64_t row = 0; row < k; ++row)
        for (int v = 0; v < kRegisters; ++v) acc[v] += load<V>(a(row) + i + v * kLanes<T>);
    } else {
      for (int v = 0; v * kLanes<T> < columns; ++v) {
        const Lane<T> lane(i + v * kLanes<T>, range.last);
        for (int64_t row = 0; row < k; ++row) acc[v] += lane.load_from(a(row));
      }
    }
    T lanes[kColumns];
    memcpy(lanes, acc, sizeof(acc));
    for (int64_t l = 0; l < columns; ++l) sum[i + l] = lanes[l] + (add ? sum[i + l] : T(0));
  }
}

}  // namespace FASTRNN_NAMESPACE
