// Matrix products over packed panels. Factors are operands of a type O (operands.h), sums are
// Compute<O>.
//
// A panel holds NV registers' worth of columns of the right-hand matrix, k-major: row k of a panel
// is NV kLanes consecutive numbers. A micro-kernel keeps R x NV accumulators in registers and runs
// down a panel once for R rows of the left-hand matrix. Every element of a result is summed over k
// in ascending order, with the same operations whatever R is, so a row's result depends neither on
// the rows beside it nor on how rows are given to threads.
//
// Where operands go in pairs, a panel holds the rows k and k + 1 interleaved, the first numbers of
// every pair at even k, and a depth that is no multiple of kGrain goes on with rows of zeros. A
// left-hand row is then read as far, and must be zero there.
//
// Zero rows, columns or panels, here and in the other headers, are nothing to do: a thread whose
// rows have all ended still comes by. The depth of a product is positive.
#pragma once

#include "cpu/memory.h"
#include "cpu/operands.h"
#include "cpu/split.h"
#if defined(FASTRNN_TILES)
#include "cpu/parts.h"
#elif defined(FASTRNN_LANES)
#include "cpu/lanes.h"
#endif

namespace FASTRNN_NAMESPACE {

struct Range {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// 32 registers: 24 accumulators, NV weights, some broadcasts. 16 registers: 12, and one weight.
inline constexpr int kAccumulators = FASTRNN_REGISTERS == 32 ? 24 : 12;
#if defined(FASTRNN_LANES)
// Sums, a register of each row and the weights, of which GCC 12 and Clang 19 spill nothing. Columns
// of the left-hand matrix fill whole registers.
template <class O, int NV>
inline constexpr int kTileRows = NV == 4   ? 5
                                 : NV == 3 ? 6
                                           : 8;
#else
template <class O, int NV>
inline constexpr int kTileRows = kTiled<O> ? 2 * kLanes<O> : kAccumulators / NV;
#endif
template <class T, int NV>
inline constexpr int kWidth = NV * kLanes<T>;
// Rows over which a weight's gradient is summed at a time.
inline constexpr int64_t kOuterDepth = 256;
// Registers of a panel. A wide one gives even a single row enough independent sums to hide the
// latency of an FMA; a narrow one wastes less at the edges, where rows are many and packed.
inline constexpr int kWide = 4, kNarrow = 2;

// Numbers that last for one call.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : bytes_(count > 0 ? count * sizeof(T) : 0) {
    if (bytes_ > 0) data_ = static_cast<T*>(fastrnn::cpu::take_memory(bytes_));
  }
  ~Buffer() { fastrnn::cpu::give_memory_back(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  const size_t bytes_;
  T* data_ = nullptr;
};

// A panel; where it is packed ld is its width. The last one of a matrix may have fewer registers,
// if that is more than two.
template <class O>
struct Panel : Rows<O> {
  int fewer = 0;  // 2 or 3, or 0 if it has all of them

  Panel from(int64_t k) const {  // k a multiple of kTerms, or of kGrain where O is in parts
    return {{this->data + k * this->ld, this->ld}, fewer};
  }
};

// out[r, :] = init[r, :] + a[r, 0..k) panel, for R rows. Rows of a are lda apart, or, with Columns,
// a is k-major: its columns, of R numbers or R pairs, are. out may be init; k > 0, since a loop
// that may be empty makes GCC 12 spill every sum.
//
// Four rows of the panel a turn of the loop: 12 FMAs take 6 cycles, and the loop's own instructions
// with them no less than that on a core that decodes for another thread every other cycle.
template <class O, int NV, int R, bool Columns>
void micro(const O* a, int64_t lda, Rows<O> right_hand, int64_t k, const Compute<O>* init,
           int64_t ld_init, Compute<O>* out, int64_t ld_out, Ahead ahead) {
#if defined(FASTRNN_TILES)
  if constexpr (kTiled<O>) {
    static_assert(!Columns);
    if constexpr (kInParts<O>)
      return parts_product<NV, R <= kTile ? 1 : 2>(R, a, lda, right_hand, k, init, ld_init, out,
                                                   ld_out);
    else
      return tile_product<NV, R>(a, lda, right_hand, k, init, ld_init, out, ld_out, ahead);
  }
#elif defined(FASTRNN_LANES)
  return lane_product<O, NV, R, Columns>(a, lda, right_hand, ceil_div(k, kTerms<O>), init, ld_init,
                                         out, ld_out, 2 * R >= kTileRows<O, NV> ? ahead : Ahead{});
#else
  using V = Vec<O>;
  constexpr int kLane = kLanes<O>, kStep = kTerms<O>;
  // Of several tiles of rows each is at least half as high as can be.
  constexpr bool kFetches = !Columns && 2 * R >= kTileRows<O, NV>;
  V acc[R][NV];
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) acc[r][v] = load<V>(init + r * ld_init + v * kLane);
  }
  const O* panel = right_hand.data;
  const int64_t ld = right_hand.ld;
  const int64_t steps = ceil_div(k, kStep);
  const auto step = [&]() __attribute__((always_inline)) {
    // The shorter side stays in registers while the other passes by: one register for it.
    const auto left = [&](int r) { return broadcast<O>(a + r * (Columns ? kStep : lda)); };
    const auto right = [&](int v) { return load_operands<O>(panel + v * kLane * kStep); };
    if constexpr (R >= NV) {
      Operands<O> w[NV];
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) w[v] = right(v);
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) {
        const Operands<O> x = left(r);
        FASTRNN_UNROLL
        for (int v = 0; v < NV; ++v) multiply_add<O>(acc[r][v], x, w[v]);
      }
    } else {
      Operands<O> x[R];
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) x[r] = left(r);
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const Operands<O> w = right(v);
        FASTRNN_UNROLL
        for (int r = 0; r < R; ++r) multiply_add<O>(acc[r][v], x[r], w);
      }
    }
    a += Columns ? lda : kStep;
    panel += ld * kStep;
  };
  const auto run_down = [&](auto&& before) __attribute__((always_inline)) {
    FASTRNN_ASSUME(steps > 0);
    FASTRNN_UNROLL_BY_4
    for (int64_t i = 0; i < steps; ++i) {
      before();
      step();
    }
  };
  if (kFetches && ahead.stride > 0) {
    run_down([&]() __attribute__((always_inline)) {
      prefetch(ahead.at);
      ahead.move(kStep);
    });
  } else {
    run_down([] {});
  }
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) store<V>(out + r * ld_out + v * kLane, acc[r][v]);
  }
#endif
}

template <class O>
using Micro = void(const O*, int64_t, Rows<O>, int64_t, const Compute<O>*, int64_t, Compute<O>*,
                   int64_t, Ahead);

template <class O, int NV>
struct Micros {
  Micro<O>* by_rows[kTileRows<O, NV> + 1];  // for 0, 1, 2, ... rows

  template <int... R>
  static constexpr Micros all(std::integer_sequence<int, R...>) {
    return {{&nothing, &micro<O, NV, R + 1, false>...}};
  }
  static void nothing(const O*, int64_t, Rows<O>, int64_t, const Compute<O>*, int64_t, Compute<O>*,
                      int64_t, Ahead) {}
};
template <class O, int NV>
inline constexpr Micros<O, NV> kMicros =
    Micros<O, NV>::all(std::make_integer_sequence<int, kTileRows<O, NV>>{});

// The micro-kernel of that many rows for a panel of NV registers, or fewer.
template <class O, int NV>
FASTRNN_INLINE Micro<O>* micro_of(int64_t rows, Panel<O> panel) {
  if constexpr (NV > 2)
    if (panel.fewer == 2) return kMicros<O, 2>.by_rows[rows];
  if constexpr (NV > 3)
    if (panel.fewer == 3) return kMicros<O, 3>.by_rows[rows];
  return kMicros<O, NV>.by_rows[rows];
}

// m rows of a left-hand matrix in pieces for a micro-kernel: about equally high, or, of whole
// tiles, all but the last one as high as can be.
template <class O, int NV>
struct Tiles {
  static constexpr int64_t kMost = kTileRows<O, NV>;
  const int64_t m, count, low, high;  // the first `high` of them have a row more than `low`

  explicit Tiles(int64_t rows)
      : m(rows), count(ceil_div(m, kMost)), low(m / max(1, count)), high(m - low * count) {}
  int64_t rows(int64_t tile) const {
    return kTiled<O> ? min(kMost, m - tile * kMost) : low + (tile < high);
  }
};

// A matrix of more bytes than these streams from a far cache: while a piece of a panel is
// multiplied, the next one is fetched.
inline constexpr int64_t kNearBytes = 1 << 20;

// The share in that of each of several tiles of rows, or, without `next`, nothing. A single tile
// has no time for it.
template <class O, int NV>
FASTRNN_INLINE Ahead ahead_of(const O* next, int64_t tiles) {
  constexpr int64_t kBytes = kWidth<O, NV> * int64_t{sizeof(O)};
  constexpr int64_t kMost = kTiled<O> ? kBytes : kLine / kTerms<O>;
  if (!next || tiles <= 1) return {};
  return {next, min(kMost, ceil_div(kBytes, tiles))};
}

// Depth that a panel is cut into, so that a piece stays in a near cache for all m rows; the sums
// are the same.
template <class O, int NV>
FASTRNN_INLINE int64_t panel_depth(int64_t k, int64_t m) {
  const int64_t bytes = k * kWidth<O, NV> * int64_t{sizeof(O)};
  return m <= kTileRows<O, NV>
             ? k
             : round_up(ceil_div(k, max(1, bytes / fastrnn::cpu::panel_bytes)), kGrain<O>);
}

// out[i, :] = init[i, :] + a[i, 0..k) panel for i in [0, m), out being as wide as the panel.
// ld_init may be 0, one row for all. out may be init. `next` is where the panel begins that will be
// read after this one, or null if it is near.
template <class O, int NV>
void multiply(const O* a, int64_t lda, int64_t m, int64_t k, Panel<O> panel, const O* next,
              const Compute<O>* init, int64_t ld_init, Compute<O>* out, int64_t ld_out) {
  if constexpr (NV > 2)
    if (const int fewer = std::exchange(panel.fewer, 0))
      return fewer == 2 ? multiply<O, 2>(a, lda, m, k, panel, next, init, ld_init, out, ld_out)
                        : multiply<O, 3>(a, lda, m, k, panel, next, init, ld_init, out, ld_out);
  const Tiles<O, NV> tiles(m);
  const int64_t depth = panel_depth<O, NV>(k, m);
  for (int64_t from = 0; from < k; from += depth) {
    Ahead ahead = ahead_of<O, NV>(next && from + depth < k ? panel.from(from + depth).data : next,
                                  tiles.count);
    const O* row = a + from;
    Compute<O>* to = out;
    for (int64_t i = 0; i < tiles.count; ++i) {
      const int64_t rows = tiles.rows(i);
      kMicros<O, NV>.by_rows[rows](row, lda, panel.from(from), min(depth, k - from), init, ld_init,
                                   to, ld_out, ahead);
      ahead.move(depth);
      row += rows * lda;
      init += rows * ld_init;
      to += rows * ld_out;
    }
    init = out;
    ld_init = ld_out;
  }
}

}  // namespace FASTRNN_NAMESPACE
