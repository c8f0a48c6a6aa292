// The micro-kernel of matrix products on tiles: Intel's AMX, since Sapphire Rapids (2023).
//
// A tile is a register of kTile rows of 64 bytes. One instruction adds to a tile of sums the
// product of a tile of the left-hand matrix, kTile rows of 32 Bf16, and one of the right-hand
// matrix, 16 rows of pairs. The layout of the right-hand one is that of a panel (gemm.h). Even and
// odd terms of the 32 are summed apart, each in ascending order, and then added. Another multiplies
// 64 unsigned bytes of a row by 16 rows of four signed ones (small_tiles.h).
//
// Tiles keep their size, since to change it takes as long as ten products: where there are fewer
// rows, those that exist are copied and nobody reads what comes of the others. The including file
// defines FASTRNN_AMX where there are such instructions; without them arrays take the place of the
// registers.
#pragma once

#include "cpu/operands.h"

namespace FASTRNN_NAMESPACE {

inline constexpr int kTile = kLanes<float>;       // rows of a tile, and sums or pairs of a row
inline constexpr int64_t kTileBytes = 4 * kTile;  // of a row
// Registers: of sums, of the left-hand matrix, of the right-hand one. As few as can be, since a
// core has few more than two threads' worth, and each that was ever written takes one of them: with
// another thread of the core in AMX too, seven in use reach 510 GFLOP/s where four reach 1300.
inline constexpr int kSums = 3, kLeft = kSums, kRight = kLeft + 1, kTileRegisters = kRight + 1;

// What the instruction reads that sets up tiles: palette 1, bytes of a row, and rows.
struct alignas(64) TileSizes {
  uint8_t palette = 1, unused[15] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit constexpr TileSizes(int registers) {
    for (int i = 0; i < registers; ++i) {
      row_bytes[i] = kTileBytes;
      rows[i] = kTile;
    }
  }
};
template <int Registers>
inline constexpr TileSizes kTileSizes{Registers};

#if defined(FASTRNN_AMX)
// Not the compilers' own functions, GCC's of which take no register's number from a template and
// do not say that they read memory.
template <int Registers>
FASTRNN_FN void tile_configure() {
  asm volatile("ldtilecfg %0" : : "m"(kTileSizes<Registers>));
}
FASTRNN_FN void tile_release() { asm volatile("tilerelease"); }
template <int Register>
FASTRNN_FN void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(from), "r"(stride), "i"(Register)
               : "memory");
}
template <int Register>
FASTRNN_FN void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Register) : "memory");
}
template <int Sums, int Left, int Right>
FASTRNN_FN void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
}
template <int Sums, int Left, int Right>
FASTRNN_FN void tile_multiply_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
}
#else
struct TileRegisters {
  bool configured = false;
  int64_t work = 0;  // how often set up, and products of bytes
  uint32_t of[8][kTile][kTile];
};
inline thread_local TileRegisters tile;

template <int Registers>
void tile_configure() {
  tile.configured = true;
  ++tile.work;
}
inline void tile_release() { tile.configured = false; }
template <int Register>
void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < kTile && tile.configured; ++r)
    memcpy(tile.of[Register][r], static_cast<const char*>(from) + r * stride, kTileBytes);
}
template <int Register>
void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < kTile && tile.configured; ++r)
    memcpy(static_cast<char*>(to) + r * stride, tile.of[Register][r], kTileBytes);
}
template <int Sums, int Left, int Right>
void tile_multiply() {
  using V = Vec<float>;
  Vec<uint32_t> right[kTile];
  memcpy(right, tile.of[Right], sizeof(right));
  for (auto& row : tile.of[Sums]) {
    const uint32_t* const left = tile.of[Left][&row - tile.of[Sums]];
    V even{}, odd{}, sum;
    for (int k = 0; k < kTile; ++k) {
      even += bit_cast<float>(left[k] << 16) * bit_cast<V>(right[k] << 16);
      odd += bit_cast<float>(left[k] & 0xffff0000u) * bit_cast<V>(right[k] & 0xffff0000u);
    }
    memcpy(&sum, row, sizeof(sum));
    sum += even + odd;
    memcpy(row, &sum, sizeof(sum));
  }
}
template <int Sums, int Left, int Right>
void tile_multiply_bytes() {
  ++tile.work;
  const auto byte = [](uint32_t word, int t) { return word >> (8 * t) & 0xffu; };
  for (int r = 0; r < kTile; ++r)
    for (int k = 0; k < kTile; ++k)
      for (int c = 0; c < kTile; ++c)
        for (int t = 0; t < 4; ++t)
          tile.of[Sums][r][c] +=
              byte(tile.of[Left][r][k], t) *
              static_cast<uint32_t>(static_cast<int8_t>(byte(tile.of[Right][k][c], t)));
}
#endif

// Tiles are set up for a task, since other libraries set up their own before and after, and
// released after it: a thread that has some is slow to leave its core.
template <int Registers>
struct TilesInUse {
  TilesInUse() { tile_configure<Registers>(); }
  ~TilesInUse() { tile_release(); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};
template <>
struct Multiplying<Bf16> : TilesInUse<kTileRegisters> {
  explicit Multiplying(int) {}
};

// out[r, :] = init[r, :] + a[r, 0..k) panel, for R rows, at most of two tiles, and NV registers of
// columns; like `micro`. What follows the k numbers of a row of a, up to a multiple of 32, is zero.
template <int NV, int R>
FASTRNN_INLINE void tile_product(const Bf16* a, int64_t lda, Rows<Bf16> panel, int64_t k,
                                 const float* init, int64_t ld_init, float* out, int64_t ld_out,
                                 Ahead ahead) {
  // Two sums at a time, of both tiles of rows if there are two, or the three of a narrow panel.
  constexpr int kHigh = R > kTile ? 2 : 1, kWide = NV == 3 ? 3 : 2, kMost = kHigh == 2 ? 1 : kWide;
  constexpr int64_t kDepth = 2 * kTile, kWidth = NV * kTile, kLast = (kHigh - 1) * kTile;
  static_assert(R <= 2 * kTile && kTile == 16 && kMost * kHigh <= kSums);
  // Of a last tile that is not full: its sums, and its rows, so many steps at a time.
  constexpr int kPart = R % kTile, kSteps = 8;
  alignas(64) float sums[kPart ? kTile * kWidth : 1];
  alignas(64) Bf16 rows[kPart ? kSteps * kTile * kDepth : 1];
  const auto part = [](int high) { return kPart > 0 && high == kHigh - 1; };
  for (int r = 0; r < kPart; ++r)
    memcpy(sums + r * kWidth, init + (kLast + r) * ld_init, kWidth * sizeof(float));

  constexpr int kGroups = (NV + kMost - 1) / kMost;
  each_constant<kGroups>([&](auto group) __attribute__((always_inline)) {
    constexpr int kFirst = group * kMost, kCount = NV - kFirst < kMost ? NV - kFirst : kMost;
    const auto each_sum = [&](auto&& body) __attribute__((always_inline)) {
      each_constant<kHigh>([&](auto high) __attribute__((always_inline)) {
        each_constant<kCount>([&](auto v) __attribute__((always_inline)) { body(high, v); });
      });
    };
    each_sum([&](auto high, auto v) __attribute__((always_inline)) {
      const float* const from = part(high) ? sums : init + high * kTile * ld_init;
      tile_load<high * kCount + v>(from + (kFirst + v) * kTile,
                                   4 * (part(high) ? kWidth : ld_init));
    });
    for (int64_t i = 0; i < k; i += kDepth) {
      const int64_t step = i / kDepth % kSteps;
      if (kPart > 0 && step == 0 && (group == 0 || k > kSteps * kDepth))
        for (int64_t c = 0; c < kSteps && i + c * kDepth < k; ++c)
          for (int r = 0; r < kPart; ++r)
            memcpy(rows + (c * kTile + r) * kDepth, a + (kLast + r) * lda + i + c * kDepth,
                   kTileBytes);
      if (ahead.stride > 0) {
        prefetch(ahead.at, ahead.stride * kDepth / kGroups);
        ahead.move(kDepth / kGroups);
      }
      const Bf16* const right = panel.data + i * panel.ld;
      if constexpr (kHigh == 2) tile_load<kRight>(right + kFirst * kDepth, panel.ld * 4);
      each_constant<kHigh>([&](auto high) __attribute__((always_inline)) {
        if constexpr (part(high))
          tile_load<kLeft>(rows + step * kTile * kDepth, kTileBytes);
        else
          tile_load<kLeft>(a + high * kTile * lda + i, lda * 2);
        each_constant<kCount>([&](auto v) __attribute__((always_inline)) {
          if constexpr (kHigh == 1) tile_load<kRight>(right + (kFirst + v) * kDepth, panel.ld * 4);
          tile_multiply<high * kCount + v, kLeft, kRight>();
        });
      });
    }
    each_sum([&](auto high, auto v) __attribute__((always_inline)) {
      float* const to = part(high) ? sums : out + high * kTile * ld_out;
      tile_store<high * kCount + v>(to + (kFirst + v) * kTile, 4 * (part(high) ? kWidth : ld_out));
    });
  });
  for (int r = 0; r < kPart; ++r)
    memcpy(out + (kLast + r) * ld_out, sums + r * kWidth, kWidth * sizeof(float));
}

}  // namespace FASTRNN_NAMESPACE
