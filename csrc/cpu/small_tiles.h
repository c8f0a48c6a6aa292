// Products of int8 on tiles (tiles.h), for small_weights.h: activations and weights lie as VNNI
// takes them, and the sums are the same in each bit.
#pragma once

#include "cpu/small_formats.h"
#include "cpu/tiles.h"

namespace FASTRNN_NAMESPACE {

// Of sums there are two: of both parts of activations of 16 bits, of two tiles of rows, or of two
// registers of columns. That makes four registers in use (tiles.h).
using ByteTilesInUse = TilesInUse<4>;

// Sums of rows of activations, `Tiles` tiles of them, and NV registers of columns.
template <class F, int Tiles, int NV>
class ByteSums {
  static constexpr int kParts = F::kParts, kLefts = Tiles * kParts;
  static constexpr int kLeftTile = 2, kRightTile = 3;
  static_assert(kLefts * NV == kLeftTile && kTile == 16);

  alignas(64) int32_t sums_[Tiles][kParts][NV][kTile][kTile];

 public:
  // rows [Tiles kTile, ld] of left words; w [words of k up to whole tiles, NV registers], its words
  // `step` bytes apart; the sums of the numbers of each column.
  FASTRNN_NOINLINE void operator()(const uint32_t* rows, int64_t ld, const int8_t* w, int64_t step,
                                   int64_t k, const int32_t* of_weights) {
    const auto each_left = [](auto&& body) __attribute__((always_inline)) {
      each_constant<Tiles>([&](auto tile) __attribute__((always_inline)) {
        each_constant<kParts>([&](auto part) __attribute__((always_inline)) { body(tile, part); });
      });
    };
    const auto each_sum = [&](auto&& body) __attribute__((always_inline)) {
      each_left([&](auto tile, auto part) __attribute__((always_inline)) {
        each_constant<NV>([&](auto n) __attribute__((always_inline)) { body(tile, part, n); });
      });
    };
    for (int n = 0; n < NV; ++n) {
      Ints first;
      memcpy(&first, of_weights + n * kTile, sizeof(first));
      const typename F::Sum sum = F::first(first);
      for (int part = 0; part < kParts; ++part)
        memcpy(sums_[0][part][n][0], &sum.v[part], sizeof(first));
    }
    each_sum([&](auto tile, auto part, auto n) __attribute__((always_inline)) {
      tile_load<(tile * kParts + part) * NV + n>(sums_[0][part][n][0], 0);  // the same in all rows
    });
    for (int64_t i = 0; i < F::part(k); i += kTile, w += kTile * step) {
      if constexpr (NV == 1) tile_load<kRightTile>(w, step);
      each_left([&](auto tile, auto part) __attribute__((always_inline)) {
        tile_load<kLeftTile>(rows + tile * kTile * ld + part * F::part(k) + i, 4 * ld);
        each_constant<NV>([&](auto n) __attribute__((always_inline)) {
          if constexpr (NV > 1) tile_load<kRightTile>(w + n * kTileBytes, step);
          tile_multiply_bytes<(tile * kParts + part) * NV + n, kLeftTile, kRightTile>();
        });
      });
    }
    each_sum([&](auto tile, auto part, auto n) __attribute__((always_inline)) {
      tile_store<(tile * kParts + part) * NV + n>(sums_[tile][part][n], kTileBytes);
    });
  }

  typename F::Sum at(int64_t row, int n) const {
    return each_of<kParts>([&](int part) {
      Ints v;
      memcpy(&v, sums_[row / kTile][part][n][row % kTile], sizeof(v));
      return v;
    });
  }
};

}  // namespace FASTRNN_NAMESPACE
