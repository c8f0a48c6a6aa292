// The micro-kernel of matrix products on tiles: Intel's AMX, since Sapphire Rapids (2023).
//
// A tile is a register of kTile rows of 64 bytes. One instruction adds to a tile of sums the
// product of a tile of the left-hand matrix, kTile rows of 32 Bf16, and one of the right-hand
// matrix, 16 rows of pairs. The layout of the right-hand one is that of a panel (gemm.h). Even and
// odd terms of the 32 are summed apart, each in ascending order, and then added.
//
// Tiles keep their size, since to change it takes as long as ten products: where there are fewer
// rows, those that exist are copied and nobody reads what comes of the others. The including file
// defines FASTRNN_TILE_LOAD, _STORE, _MULTIPLY, _CONFIGURE and _RELEASE, the intrinsic functions;
// without them arrays take the place of the registers.
#pragma once

#include <atomic>

#include "cpu/vec.h"

namespace FASTRNN_NAMESPACE {

inline constexpr int kTile = kLanes<float>;  // rows of a tile, and sums or pairs of a row
inline constexpr int kTileRegisters = 8;     // by their numbers: 0 to 3 sums, 4 left, 5, 6 right
inline constexpr int64_t kTileBytes = 4 * kTile;  // of a row

#if !defined(FASTRNN_TILE_LOAD)
inline thread_local uint32_t tile_register[kTileRegisters][kTile][kTile];
inline thread_local bool tiles_ready = false;

inline void tile_load(int to, const void* from, int64_t stride) {
  for (int r = 0; r < kTile && tiles_ready; ++r)
    memcpy(tile_register[to][r], static_cast<const char*>(from) + r * stride, kTileBytes);
}
inline void tile_store(int from, void* to, int64_t stride) {
  for (int r = 0; r < kTile && tiles_ready; ++r)
    memcpy(static_cast<char*>(to) + r * stride, tile_register[from][r], kTileBytes);
}
inline void tile_multiply(int sums, int left, int right) {
  for (int r = 0; r < kTile; ++r) {
    Bf16 a[2 * kTile], b[2 * kTile];
    float even[kTile] = {}, odd[kTile] = {};
    memcpy(a, tile_register[left][r], sizeof(a));
    for (int k = 0; k < kTile; ++k) {
      memcpy(b, tile_register[right][k], sizeof(b));
      for (int l = 0; l < kTile; ++l) {
        even[l] += load<float>(a + 2 * k) * load<float>(b + 2 * l);
        odd[l] += load<float>(a + 2 * k + 1) * load<float>(b + 2 * l + 1);
      }
    }
    for (int l = 0; l < kTile; ++l) {
      uint32_t& bits = tile_register[sums][r][l];
      bits = bit_cast<uint32_t>(bit_cast<float>(bits) + (even[l] + odd[l]));
    }
  }
}
#define FASTRNN_TILE_LOAD tile_load
#define FASTRNN_TILE_STORE tile_store
#define FASTRNN_TILE_MULTIPLY tile_multiply
#define FASTRNN_TILE_CONFIGURE(sizes) (static_cast<void>(sizes), tiles_ready = true)
#define FASTRNN_TILE_RELEASE() (tiles_ready = false)
#endif

// What the instruction for it reads: palette 1, then bytes of a row and rows of each register.
struct alignas(64) TileSizes {
  uint8_t palette = 1, unused[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr TileSizes() {
    for (int i = 0; i < kTileRegisters; ++i) {
      row_bytes[i] = kTileBytes;
      rows[i] = kTile;
    }
  }
};
inline constexpr TileSizes kTileSizes;

// Sizes are set up for a task, since other libraries set up their own before and after, and
// released after it: a thread with tiles in use is slow to leave its core.
template <>
struct Multiplying<Bf16> {
  Multiplying() { FASTRNN_TILE_CONFIGURE(&kTileSizes); }
  ~Multiplying() { FASTRNN_TILE_RELEASE(); }
  Multiplying(const Multiplying&) = delete;
  Multiplying& operator=(const Multiplying&) = delete;
};

// out[r, :] = init[r, :] + a[r, 0..k) panel, for R rows and NV registers of columns; like `micro`.
// What follows the k numbers of a row of a, up to a multiple of 32, is zero.
template <int NV, int R>
FASTRNN_INLINE void tile_product(const Bf16* a, int64_t lda, Rows<Bf16> panel, int64_t k,
                                 const float* init, int64_t ld_init, float* out, int64_t ld_out) {
  static_assert(NV <= 4 && kTile == 16);
  constexpr bool kWhole = R == kTile;
  constexpr int64_t kDepth = 2 * kTile, kWidth = NV * kTile;
  constexpr int kCopies = 8;  // of left tiles, so that none waits for the one before
  alignas(64) float sums[kWhole ? 1 : kTile * kWidth];
  alignas(64) Bf16 left[kWhole ? 1 : kCopies * kTile * kDepth];
  // The compiler does not know what the instructions read.
  const auto written = [] { std::atomic_signal_fence(std::memory_order_seq_cst); };

  float* const to = kWhole ? out : sums;
  const int64_t ld_to = kWhole ? ld_out : kWidth;
  if constexpr (!kWhole) {
    for (int r = 0; r < R; ++r)
      memcpy(sums + r * kWidth, init + r * ld_init, kWidth * sizeof(float));
    init = sums;
    ld_init = kWidth;
  }
  written();
#define FASTRNN_SUMS(v) \
  if constexpr (v < NV) FASTRNN_TILE_LOAD(v, init + v * kTile, ld_init * 4);
  FASTRNN_SUMS(0)
  FASTRNN_SUMS(1) FASTRNN_SUMS(2) FASTRNN_SUMS(3)
#undef FASTRNN_SUMS
      for (int64_t i = 0; i < k; i += kDepth) {
    if constexpr (kWhole) {
      FASTRNN_TILE_LOAD(4, a + i, lda * 2);
    } else {
      Bf16* const copy = left + i / kDepth % kCopies * kTile * kDepth;
      for (int r = 0; r < R; ++r) memcpy(copy + r * kDepth, a + r * lda + i, kTileBytes);
      written();
      FASTRNN_TILE_LOAD(4, copy, kTileBytes);
    }
    const Bf16* const right = panel.data + i * panel.ld;
#define FASTRNN_STEP(v, right_register)                                  \
  if constexpr (v < NV) {                                                \
    FASTRNN_TILE_LOAD(right_register, right + v * kDepth, panel.ld * 4); \
    FASTRNN_TILE_MULTIPLY(v, 4, right_register);                         \
  }
    FASTRNN_STEP(0, 5) FASTRNN_STEP(1, 6) FASTRNN_STEP(2, 5) FASTRNN_STEP(3, 6)
#undef FASTRNN_STEP
  }
#define FASTRNN_RESULT(v) \
  if constexpr (v < NV) FASTRNN_TILE_STORE(v, to + v * kTile, ld_to * 4);
  FASTRNN_RESULT(0)
  FASTRNN_RESULT(1) FASTRNN_RESULT(2) FASTRNN_RESULT(3)
#undef FASTRNN_RESULT
      for (int r = 0; r < R && !kWhole; ++r)
          memcpy(out + r * ld_out, sums + r * kWidth, kWidth * sizeof(float));
}

}  // namespace FASTRNN_NAMESPACE
