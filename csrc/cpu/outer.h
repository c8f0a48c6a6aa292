// Sums over rows, which training ends in: products of a column of one matrix with a column of
// another, the gradient of a weight, and of columns, the gradient of a bias.
#pragma once

#include "cpu/gemm.h"

namespace FASTRNN_NAMESPACE {

// c[i, j] (+)= sum over k of a[k, i] b(k)[j], k in [0, depth), for a range of i and all j in [0,
// n): the gradient of a weight. Rows of a are lda apart and read as they lie, up to kTileRows - 1
// numbers further than the range; b returns the row k of the right matrix; `add` keeps what c
// holds.
template <class O, class T, class RowsB>
void outer(int64_t k, Range range, int64_t n, const O* a, int64_t lda, RowsB&& b, T* c, bool add) {
  const auto [first, last] = range;
  const int64_t ldc = n;
  constexpr int64_t kRows = kTileRows<kNarrow>;
  constexpr int64_t kLd = kWidth<T, kNarrow>;
  constexpr int kStep = kTerms<O>;
  constexpr bool kPairs = kStep > 1;  // of rows of a, which are put together first
  constexpr int64_t kBlock = (96 + kRows - 1) / kRows * kRows;
  if (k == 0 && !add) memset(c + first * ldc, 0, range.count() * n * sizeof(T));
  // Pieces about equally deep: each takes all of c through the caches once more.
  const int64_t most = round_up(ceil_div(k, max(1, ceil_div(k, kOuterDepth))), kStep);
  const int64_t panels = ceil_div(n, kLd);
  Buffer<O> right(panels * most * kLd), left(kPairs ? kBlock * most : 0);
  alignas(64) T tile[kRows * kLd];
  alignas(64) const T zero[kLd] = {};
  for (int64_t from = 0; from < k; from += most) {
    const int64_t depth = min(most, k - from);
    for (int64_t i = 0; i < depth; i += kStep) {
      decltype(b(0)) row[kStep];
      for (int t = 0; t < kStep; ++t) row[t] = b(from + min(i + t, depth - 1));
      for (int64_t p = 0; p < panels; ++p) {
        O* out = right + (p * most + i) * kLd;
        const int64_t valid = min(kLd, n - p * kLd);
        if (valid == kLd && i + kStep <= depth) {
          FASTRNN_UNROLL
          for (int v = 0; v < kNarrow; ++v)
            store_operands<O>(out + v * kLanes<T> * kStep,
                              from_columns<O>(row, p * kLd + v * kLanes<T>));
        } else {
          for (int64_t l = 0; l < kLd; ++l)
            for (int t = 0; t < kStep; ++t)
              out[l * kStep + t] =
                  l < valid && i + t < depth ? as_operand<O>(row[t] + p * kLd + l) : O{};
        }
      }
    }
    for (int64_t block = first; block < last; block += kBlock) {
      const int64_t block_rows = min(kBlock, last - block);
      for (int64_t i = 0; i < depth && kPairs; i += kStep) {
        const O* row[kStep];
        for (int t = 0; t < kStep; ++t) row[t] = a + (from + min(i + t, depth - 1)) * lda + block;
        for (int64_t r = 0; r < block_rows; r += kRows) {
          O* out = left + r * most + i * kRows;
          for (int l = 0; l < kRows; ++l)
            for (int t = 0; t < kStep; ++t)
              out[l * kStep + t] = i + t < depth ? row[t][r + l] : O{};
        }
      }
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t columns = min(kLd, n - p * kLd);
        for (int64_t r = 0; r < block_rows; r += kRows) {
          const int64_t rows = min(kRows, block_rows - r);
          T* const out = c + (block + r) * ldc + p * kLd;
          const bool keep = add || from > 0, whole = rows == kRows && columns == kLd;
          if (keep)  // the next tile of c
            for (int64_t i = rows; i < min(rows + kRows, block_rows - r); ++i) {
              prefetch(out + i * ldc);
              prefetch(out + i * ldc + columns - 1);
            }
          micro<O, kNarrow, kRows, true>(
              kPairs ? left + r * most : a + from * lda + block + r, kPairs ? kRows * kStep : lda,
              {right + p * most * kLd, kLd}, depth, keep && whole ? out : zero,
              keep && whole ? ldc : 0, whole ? out : tile, whole ? ldc : kLd);
          for (int64_t i = 0; i < rows && !whole; ++i)
            for (int64_t j = 0; j < columns; ++j)
              out[i * ldc + j] = tile[i * kLd + j] + (keep ? out[i * ldc + j] : T(0));
        }
      }
    }
  }
}

// sum[i] (+)= sum over k of a(k)[i], k in [0, depth), for a range of i: the gradient of a bias.
template <class T, class Rows>
void column_sums(int64_t k, Range range, Rows&& a, T* sum, bool add) {
  using V = Vec<T>;
  constexpr int kRegisters = 4;
  constexpr int64_t kColumns = kRegisters * kLanes<T>;
  for (int64_t i = range.first; i < range.last; i += kColumns) {
    T lanes[kColumns] = {};
    const int64_t columns = min(kColumns, range.last - i);
    if (add) memcpy(lanes, sum + i, columns * sizeof(T));
    if (columns == kColumns) {
      V acc[kRegisters];
      memcpy(acc, lanes, sizeof(acc));
      for (int64_t row = 0; row < k; ++row)
        for (int v = 0; v < kRegisters; ++v) acc[v] += load<V>(a(row) + i + v * kLanes<T>);
      memcpy(lanes, acc, sizeof(acc));
    } else {
      for (int64_t row = 0; row < k; ++row)
        for (int64_t l = 0; l < columns; ++l) lanes[l] += load<T>(a(row) + i + l);
    }
    memcpy(sum + i, lanes, columns * sizeof(T));
  }
}

}  // namespace FASTRNN_NAMESPACE
