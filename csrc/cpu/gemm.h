// Matrix products over packed panels.
//
// A panel holds NV registers' worth of columns of the right-hand matrix, k-major: row k of a panel
// is NV kLanes consecutive numbers. A micro-kernel keeps R x NV accumulators in registers and runs
// down a panel once for R rows of the left-hand matrix. Every element of a result is summed over k
// in ascending order, with the same operations whatever R is, so a row's result depends neither on
// the rows beside it nor on how rows are given to threads.
#pragma once

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/vec.h"

namespace FASTRNN_NAMESPACE {

FASTRNN_FN int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
FASTRNN_FN int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
FASTRNN_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTRNN_FN int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Range {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// 32 registers: 24 accumulators, NV weights, some broadcasts. 16 registers: 12, and one weight.
inline constexpr int kAccumulators = FASTRNN_REGISTERS == 32 ? 24 : 12;
template <int NV>
inline constexpr int kTileRows = kAccumulators / NV;
template <class T, int NV>
inline constexpr int kWidth = NV * kLanes<T>;
// Bytes of a panel that a micro-kernel runs over at once, about the first-level cache; and the
// rows over which a weight's gradient is summed at a time.
inline constexpr int64_t kPanelBytes = 32 * 1024, kOuterDepth = 256;
// Registers of a panel. A wide one gives even a single row enough independent sums to hide the
// latency of an FMA; a narrow one wastes less at the edges, where rows are many and packed.
inline constexpr int kWide = 4, kNarrow = 2;

// Memory for one call, aligned to a cache line; large ones to the pages that Linux may then make
// huge, since faulting in 4 KiB at a time costs 5 % of a training step with large weights.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    if (count <= 0) return;
    constexpr int64_t kHugePage = 2 << 20;
    const int64_t bytes = count * int64_t{sizeof(T)};
    const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
    const size_t size = static_cast<size_t>(round_up(bytes, alignment));
    data_ = static_cast<T*>(std::aligned_alloc(static_cast<size_t>(alignment), size));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(data_, size, MADV_HUGEPAGE);
#endif
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_ = nullptr;
};

// A panel, its rows `ld` apart: kWidth if it is packed.
template <class T>
struct Panel {
  const T* data;
  int64_t ld;

  Panel from(int64_t k) const { return {data + k * ld, ld}; }
};

// out[r, :] = init[r, :] + a[r, 0..k) panel, for R rows. Rows of a are lda apart, or, with Packed,
// a is k-major with R numbers a step. out may be init; k > 0, since a loop that may be empty makes
// GCC 12 spill every sum.
template <class T, int NV, int R, bool Packed>
void micro(const T* a, int64_t lda, Panel<T> right_hand, int64_t k, const T* init, int64_t ld_init,
           T* out, int64_t ld_out) {
  using V = Vec<T>;
  constexpr int kLane = kLanes<T>;
  V acc[R][NV];
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) acc[r][v] = load<V>(init + r * ld_init + v * kLane);
  }
  auto [panel, ld] = right_hand;
  do {
    // The shorter side stays in registers while the other passes by: one register for it.
    const auto left = [&](int r) { return set1<V>(Packed ? a[r] : a[r * lda]); };
    const auto right = [&](int v) { return load<V>(panel + v * kLane); };
    if constexpr (R >= NV) {
      V w[NV];
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = right(v);
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) {
        const V x = left(r);
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) acc[r][v] += x * w[v];
      }
    } else {
      V x[R];
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) x[r] = left(r);
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const V w = right(v);
        FASTRNN_UNROLL
        for (int r = 0; r < R; ++r) acc[r][v] += x[r] * w;
      }
    }
    a += Packed ? R : 1;
    panel += ld;
  } while (--k > 0);
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) store<V>(out + r * ld_out + v * kLane, acc[r][v]);
  }
}

template <class T>
using Micro = void(const T*, int64_t, Panel<T>, int64_t, const T*, int64_t, T*, int64_t);

template <class T, int NV>
struct Micros {
  Micro<T>* by_rows[kTileRows<NV>];  // for 1, 2, ... rows

  template <int... R>
  static constexpr Micros all(std::integer_sequence<int, R...>) {
    return {{&micro<T, NV, R + 1, false>...}};
  }
};
template <class T, int NV>
inline constexpr Micros<T, NV> kMicros =
    Micros<T, NV>::all(std::make_integer_sequence<int, kTileRows<NV>>{});

// m rows of a left-hand matrix in tiles, all about equally high.
template <int NV>
struct Tiles {
  const int64_t count, low, high;  // the first `high` of them have a row more than `low`

  explicit Tiles(int64_t m)
      : count(ceil_div(m, kTileRows<NV>)), low(m / max(1, count)), high(m - low * count) {}
  int64_t rows(int64_t tile) const { return low + (tile < high); }
};

// Numbers that follow in a matrix which streams from a far cache: each tile of a piece fetches its
// share, 3 to 11 % on large layers. A single tile has no time for it.
template <class T>
class Ahead {
  static constexpr int64_t kLine = 64 / sizeof(T);
  const T* next_;
  const int64_t share_;

 public:
  Ahead(const T* next, int64_t count, int64_t tiles)
      : next_(next), share_(tiles > 1 ? ceil_div(count, tiles * kLine) * kLine : 0) {}
  FASTRNN_INLINE void fetch() {
    for (int64_t i = 0; i < share_; i += kLine) prefetch(next_ + i);
    next_ += share_;
  }
};

// Depth that a panel is cut into, so that a piece stays in the first-level cache for all m rows;
// the sums are the same.
template <class T, int NV>
FASTRNN_INLINE int64_t panel_depth(int64_t k, int64_t m) {
  const int64_t bytes = k * kWidth<T, NV> * int64_t{sizeof(T)};
  return m <= kTileRows<NV> ? k : ceil_div(k, max(1, bytes / kPanelBytes));
}

// out[i, :] = init[i, :] + a[i, 0..k) panel for i in [0, m), out being kWidth wide. ld_init may be
// 0, one row for all. out may be init.
template <class T, int NV>
void multiply(const T* a, int64_t lda, int64_t m, int64_t k, Panel<T> panel, const T* init,
              int64_t ld_init, T* out, int64_t ld_out) {
  const Tiles<NV> tiles(m);
  const int64_t depth = panel_depth<T, NV>(k, m);
  for (int64_t from = 0; from < k; from += depth) {
    Ahead<T> ahead(panel.from(from + depth).data, depth * kWidth<T, NV>, tiles.count);
    const T* row = a + from;
    T* to = out;
    for (int64_t i = 0; i < tiles.count; ++i) {
      ahead.fetch();
      const int64_t rows = tiles.rows(i);
      kMicros<T, NV>.by_rows[rows - 1](row, lda, panel.from(from), min(depth, k - from), init,
                                       ld_init, to, ld_out);
      row += rows * lda;
      init += rows * ld_init;
      to += rows * ld_out;
    }
    init = out;
    ld_init = ld_out;
  }
}

// A right-hand matrix and its panels. `Transposed` says how it lies: the columns of the product
// are rows of w [columns, k] (a weight in a forward product), or columns of w [k, columns].
// Groups > 1 interleaves: a panel takes NV / Groups registers from each of Groups blocks of
// `columns` columns, so that all gates of the same units meet in one tile.
// Without `keep`, for a matrix that is used for a few rows only, panels are read as they lie, which
// takes k-major columns; but a last one that is not full is packed, each time it is asked for, into
// the caller's scratch.
template <class T, int NV, int Groups, bool Transposed>
struct Panels {
  static constexpr int kLane = kLanes<T>;
  static constexpr int kPerGroup = NV / Groups;
  static constexpr int64_t kUnits = kPerGroup * kLane;  // columns of each group in a panel

  const T* const w;
  const int64_t k, columns;  // rows of w are `ld` apart
  const int64_t ld;
  Buffer<T> packed;  // [count(), k, kWidth], or null

  Panels(const T* weight, int64_t depth, int64_t width, bool keep)
      : w(weight),
        k(depth),
        columns(width),
        ld(Transposed ? depth : width),
        packed(keep ? count() * stride() : 0) {}

  int64_t count() const { return w ? ceil_div(columns, kUnits) : 0; }
  int64_t stride() const { return k * kWidth<T, NV>; }
  int64_t scratch() const { return packed || !w || columns % kUnits == 0 ? 0 : stride(); }

  Panel<T> get(int64_t panel) const { return {packed + panel * stride(), kWidth<T, NV>}; }
  Panel<T> get(int64_t panel, T* scratch) const {
    static_assert(!Transposed, "panels of a transposed matrix are kept");
    if (packed) return get(panel);
    if ((panel + 1) * kUnits <= columns) return {w + panel * kUnits, ld};
    pack(panel, scratch);
    return {scratch, kWidth<T, NV>};
  }
  void keep(int64_t panel) { pack(panel, packed + panel * stride()); }

  void pack(int64_t panel, T* out) const {
    if (w == nullptr) return void(memset(out, 0, stride() * sizeof(T)));
    for (int g = 0; g < Groups; ++g)
      for (int u = 0; u < kPerGroup; ++u) {
        const int64_t column = panel * kUnits + u * kLane;
        const int64_t valid = max(0, min(kLane, columns - column));
        pack_register(g * columns + column, valid, out + (g * kPerGroup + u) * kLane);
      }
  }

 private:
  // One register's worth of columns, all k, zero beyond the valid ones.
  void pack_register(int64_t column, int64_t valid, T* out) const {
    using V = Vec<T>;
    constexpr int64_t kOut = kWidth<T, NV>;
    int64_t i = 0;
    if (valid == kLane) {
      if constexpr (Transposed) {
        const T* const from = w + column * ld;
        for (; i + kLane <= k; i += kLane) {
          V block[kLane];
          FASTRNN_UNROLL
          for (int l = 0; l < kLane; ++l) block[l] = load<V>(from + l * ld + i);
          transpose<T>(block);
          FASTRNN_UNROLL
          for (int l = 0; l < kLane; ++l) store<V>(out + (i + l) * kOut, block[l]);
        }
      } else {
        for (; i < k; ++i) store<V>(out + i * kOut, load<V>(w + i * ld + column));
      }
    }
    for (; i < k; ++i)
      for (int64_t l = 0; l < kLane; ++l) {
        const int64_t at = Transposed ? (column + l) * ld + i : i * ld + column + l;
        out[i * kOut + l] = l < valid ? w[at] : T(0);
      }
  }
};

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
  FASTRNN_INLINE void add(const T* w, int64_t ld, int64_t valid, const T* const* x, int64_t k) {
    for (int c = 0; c < kLane; c += kColumns) {
      const T* row[kColumns];
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

// c[i, j] (+)= sum over k of a(k)[i] b(k)[j], k in [0, depth), for a range of i and all j in [0,
// n): the gradient of a weight. a and b return the row k of the left and right matrix; `add` keeps
// what c holds.
template <class T, class RowsA, class RowsB>
void outer(int64_t k, Range range, int64_t n, RowsA&& a, RowsB&& b, T* c, bool add) {
  using V = Vec<T>;
  const auto [first, last] = range;
  const int64_t ldc = n;
  constexpr int64_t kRows = kTileRows<kNarrow>;
  constexpr int64_t kLd = kWidth<T, kNarrow>;
  constexpr int64_t kBlock = (96 + kRows - 1) / kRows * kRows;
  if (k == 0 && !add) memset(c + first * ldc, 0, range.count() * n * sizeof(T));
  // Pieces about equally deep: each takes all of c through the caches once more.
  const int64_t most = ceil_div(k, max(1, ceil_div(k, kOuterDepth)));
  const int64_t panels = ceil_div(n, kLd);
  Buffer<T> right(panels * most * kLd), left(kBlock * most);
  alignas(64) T tile[kRows * kLd];
  alignas(64) const T zero[kLd] = {};
  for (int64_t from = 0; from < k; from += most) {
    const int64_t depth = min(most, k - from);
    for (int64_t i = 0; i < depth; ++i) {
      const T* row = b(from + i);
      for (int64_t p = 0; p < panels; ++p) {
        T* out = right + (p * most + i) * kLd;
        const int64_t valid = min(kLd, n - p * kLd);
        if (valid == kLd) {
          FASTRNN_UNROLL
          for (int v = 0; v < kNarrow; ++v)
            store<V>(out + v * kLanes<T>, load<V>(row + p * kLd + v * kLanes<T>));
        } else {
          for (int64_t l = 0; l < kLd; ++l) out[l] = l < valid ? row[p * kLd + l] : T(0);
        }
      }
    }
    for (int64_t block = first; block < last; block += kBlock) {
      const int64_t block_rows = min(kBlock, last - block);
      for (int64_t i = 0; i < depth; ++i) {
        const T* row = a(from + i) + block;
        for (int64_t r = 0; r < block_rows; r += kRows) {
          T* out = left + (r * most) + i * kRows;
          if (r + kRows <= block_rows) {
            FASTRNN_UNROLL
            for (int l = 0; l < kRows; ++l) out[l] = row[r + l];
          } else {
            for (int64_t l = 0; l < kRows; ++l) out[l] = r + l < block_rows ? row[r + l] : T(0);
          }
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
          micro<T, kNarrow, kRows, true>(left + r * most, 0, {right + p * most * kLd, kLd}, depth,
                                         keep && whole ? out : zero, keep && whole ? ldc : 0,
                                         whole ? out : tile, whole ? ldc : kLd);
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
        for (int64_t l = 0; l < columns; ++l) lanes[l] += a(row)[i + l];
    }
    memcpy(sum + i, lanes, columns * sizeof(T));
  }
}

}  // namespace FASTRNN_NAMESPACE
