// Products of floats on tiles of Bf16 (tiles.h): each float is the sum of three Bf16, its parts.
//
// The parts of a float are what is left of it, rounded, three times over: 8 bits of its 24 each,
// and a sign, so that their sum is the float. Of the nine products of two floats' parts six are
// made; the other three are below 2^-24 of the whole. A tile adds 32 of them to its sums at a time,
// which therefore round less often than one that takes every product by itself: the error is about
// half of it. Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations" (2019).
//
// A layer that allows it uses the first two parts alone, in three products, or the first, in one.
// Three leave out up to 2^-15 of a product of two numbers, and one up to 2^-7; as the root of the
// mean square these are 2^-18 and 2^-9.
//
// Numbers below 2^-126 are zero, parts too, so what is below about 1e-31 loses bits. An infinite
// number, or one above 3.39e38, has no parts: they are NaN, so are the results, and the caller
// computes them again without parts (table_parts.h).
#pragma once

#include "cpu/tiles.h"

namespace FASTRNN_NAMESPACE {

// Memory: blocks of kGrain numbers, of each the first parts of all of them, the second, the third.
// In a row of a matrix these follow; in a panel each part of a block is as a panel of Bf16 is.
inline constexpr int64_t kDepth = kGrain<Parts>;  // of a block
inline constexpr int64_t kPartBytes = kDepth * sizeof(Bf16), kBlockBytes = kParts * kPartBytes;

// Writes a register of numbers at `column`, a multiple of kLanes, of a row of blocks.
FASTRNN_FN void store_parts(Parts* row, int64_t column, Vec<float> v) {
  v = nan_beyond_bf16(v);
  constexpr int kLane = kLanes<float>;
  Bf16* to = reinterpret_cast<Bf16*>(row + column / kDepth * kDepth) + column % kDepth;
  for (int part = 0; part < kParts; ++part, to += kDepth) {
    static_assert(kDepth % kLane == 0);
    store<Vec<float>>(to, v);
    v -= load<Vec<float>>(to);
  }
}

// The parts of numbers of two rows, in pairs.
struct PairedParts {
  Operands<Bf16> of[kParts];
};
FASTRNN_FN PairedParts pair_parts(Vec<float> first, Vec<float> second) {
  PairedParts out;
  first = nan_beyond_bf16(first);
  second = nan_beyond_bf16(second);
  FASTRNN_UNROLL
  for (int part = 0; part < kParts; ++part) {
    Bf16 x[kLanes<float>], y[kLanes<float>];
    store<Vec<float>>(x, first);
    store<Vec<float>>(y, second);
    out.of[part] = pairs(x, y);
    first -= load<Vec<float>>(x);
    second -= load<Vec<float>>(y);
  }
  return out;
}

// Where the part of a register of a panel begins, within a block.
FASTRNN_FN char* part_of(Parts* block, int64_t ld, int64_t at, int part) {
  return reinterpret_cast<char*>(block) + part * ld * kPartBytes + at * kTile * kTileBytes;
}
// Packs one register's worth of columns of a panel of `ld` columns, register `at` of them:
// numbers(i) returns what row i of k has there. What follows the k rows, up to whole blocks, is
// zero.
template <class Numbers>
FASTRNN_INLINE void pack_parts(int64_t k, Parts* panel, int64_t ld, int64_t at, Numbers&& numbers) {
  for (int64_t i = 0; i < round_up(k, kDepth); i += 2) {
    const PairedParts two =
        pair_parts(i < k ? numbers(i) : Vec<float>{}, i + 1 < k ? numbers(i + 1) : Vec<float>{});
    for (int part = 0; part < kParts; ++part)
      memcpy(part_of(panel + i / kDepth * kDepth * ld, ld, at, part) + i % kDepth / 2 * kTileBytes,
             &two.of[part], kTileBytes);
  }
}
// The same of one block, from kLanes rows of the transposed matrix, a block each.
FASTRNN_FN void pack_block(const Parts* rows, Parts* block, int64_t ld, int64_t at) {
  for (int part = 0; part < kParts; ++part) {
    Operands<Bf16> square[kTile];
    for (int l = 0; l < kTile; ++l)
      memcpy(&square[l], reinterpret_cast<const char*>(rows + l * kDepth) + part * kPartBytes,
             kPartBytes);
    transpose<uint32_t>(square);
    memcpy(part_of(block, ld, at, part), square, sizeof(square));
  }
}

// Writes kLanes rows of a block of `to`: row r gets the numbers of column r of `from`, whose rows
// are `ld` apart. What follows `rows` of them is zero.
FASTRNN_FN void transpose_parts(const float* from, int64_t ld, int64_t rows, Parts* to,
                                int64_t ld_to) {
  Operands<Bf16> square[kParts][kTile];
  const auto numbers = [&](int64_t i) {
    return i < rows ? load<Vec<float>>(from + i * ld) : Vec<float>{};
  };
  for (int l = 0; l < kTile; ++l) {
    const PairedParts two = pair_parts(numbers(2 * l), numbers(2 * l + 1));
    for (int part = 0; part < kParts; ++part) square[part][l] = two.of[part];
  }
  for (int part = 0; part < kParts; ++part) {
    transpose<uint32_t>(square[part]);
    for (int l = 0; l < kTile; ++l)
      memcpy(reinterpret_cast<char*>(to + l * ld_to) + part * kPartBytes, &square[part][l],
             kPartBytes);
  }
}

// The products of a block, which pair of parts each: the left one changes twice, the right one
// three times. Where only the first `used` parts are, those pairs whose sum is less.
inline constexpr int kProducts = 6, kLeftPart[kProducts] = {2, 1, 1, 0, 0, 0},
                     kRightPart[kProducts] = {0, 0, 1, 1, 0, 2};
constexpr bool is_made(int product, int used) {
  return kLeftPart[product] + kRightPart[product] < used;
}
// The one made before it, or -1.
constexpr int made_before(int product, int used) {
  do --product;
  while (product >= 0 && !is_made(product, used));
  return product;
}
// How many parts of each number the products of this thread's task are of.
inline thread_local int parts_used = kParts;
// Registers: sums of up to two tiles of rows and so many of columns, a part of either side. With
// one of columns fewer registers are in use, which helps beside another thread of the core
// (tiles.h), but the left side is read twice as often.
inline constexpr int kMostColumns = 2;
template <int High, int Wide>
struct PartRegisters {
  static constexpr int kLeft = High * Wide, kRight = kLeft + High, kCount = kRight + Wide;
  static_assert(kCount <= 8);
};

// out[r, :] = init[r, :] + a[r, 0..k) panel, for `rows` rows, which High tiles hold, and NV
// registers of columns; like `micro`. Of a last tile that is not full, the rows that exist are
// copied and nobody reads what comes of the others.
template <int NV, int High, int Used>
FASTRNN_NOINLINE void product_of_parts(int64_t rows, const Parts* a, int64_t lda, Rows<Parts> panel,
                                       int64_t k, const float* init, int64_t ld_init, float* out,
                                       int64_t ld_out) {
  constexpr int64_t kColumns = NV * kTile, kFirst = (High - 1) * kTile;
  const int64_t last = rows - kFirst, blocks = ceil_div(k, kDepth);
  const bool full = last == kTile;
  // Blocks of the last tile that are copied at a time, and its sums.
  constexpr int64_t kCopied = 8, kCopiedBytes = kTile * kBlockBytes;
  alignas(64) char copies[kCopied * kCopiedBytes];
  alignas(64) float sums[kTile * kColumns], ignored[kTile * kTile];
  if (!full)
    for (int64_t r = 0; r < last; ++r)
      memcpy(sums + r * kColumns, init + (kFirst + r) * ld_init, kColumns * sizeof(float));
  const auto init_of = [&](int high) {
    return high == High - 1 && !full ? Rows<float>{sums, kColumns}
                                     : Rows<float>{init + high * kTile * ld_init, ld_init};
  };

  constexpr int kGroups = ceil_div(NV, kMostColumns);
  each_constant<kGroups>([&](auto group) __attribute__((always_inline)) {
    constexpr int kFrom = group * kMostColumns, kWide = min(kMostColumns, NV - kFrom);
    using R = PartRegisters<High, kWide>;
    each_constant<High * kWide>([&](auto i) __attribute__((always_inline)) {
      const Rows<float> from = init_of(i / kWide);
      tile_load<i>(from.data + (kFrom + i % kWide) * kTile, from.ld * sizeof(float));
    });
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t copy = block % kCopied;
      if (!full && copy == 0 && (group == 0 || blocks > kCopied))
        for (int64_t b = 0; b < min(kCopied, blocks - block); ++b)
          for (int64_t r = 0; r < last; ++r)
            memcpy(copies + b * kCopiedBytes + r * kBlockBytes,
                   a + (kFirst + r) * lda + (block + b) * kDepth, Used * kPartBytes);
      const char* left[High];
      int64_t ld_left[High];
      each_constant<High>([&](auto high) __attribute__((always_inline)) {
        const bool copied = high == High - 1 && !full;
        left[high] = copied
                         ? copies + copy * kCopiedBytes
                         : reinterpret_cast<const char*>(a + high * kTile * lda + block * kDepth);
        ld_left[high] = copied ? kBlockBytes : lda * int64_t{sizeof(Parts)};
      });
      const char* const right = reinterpret_cast<const char*>(panel.data) +
                                block * panel.ld * kBlockBytes + kFrom * kTile * kTileBytes;
      each_constant<kProducts>([&](auto product) __attribute__((always_inline)) {
        constexpr int p = product, before = made_before(p, Used), other = max(0, before);
        if constexpr (is_made(p, Used)) {
          if constexpr (before < 0 || kLeftPart[p] != kLeftPart[other])
            each_constant<High>([&](auto high) __attribute__((always_inline)) {
              tile_load<R::kLeft + high>(left[high] + kLeftPart[p] * kPartBytes, ld_left[high]);
            });
          each_constant<kWide>([&](auto wide) __attribute__((always_inline)) {
            if constexpr (before < 0 || kRightPart[p] != kRightPart[other])
              tile_load<R::kRight + wide>(
                  right + kRightPart[p] * panel.ld * kPartBytes + wide * kTile * kTileBytes,
                  kTileBytes);
            each_constant<High>([&](auto high) __attribute__((always_inline)) {
              tile_multiply<high * kWide + wide, R::kLeft + high, R::kRight + wide>();
            });
          });
        }
      });
      // After some 2,000 cycles of products without a store the next store takes 1,000 more.
      if (block % (2 * kParts / Used) == 1) tile_store<R::kRight>(ignored, kTileBytes);
    }
    each_constant<High * kWide>([&](auto i) __attribute__((always_inline)) {
      constexpr int kHigh = i / kWide;
      const bool copied = kHigh == High - 1 && !full;
      float* const to = copied ? sums : out + kHigh * kTile * ld_out;
      tile_store<i>(to + (kFrom + i % kWide) * kTile, (copied ? kColumns : ld_out) * sizeof(float));
    });
  });
  for (int64_t r = 0; r < last && !full; ++r)
    memcpy(out + (kFirst + r) * ld_out, sums + r * kColumns, kColumns * sizeof(float));
}

// The same of as many parts as the thread's task uses.
template <int NV, int High, class... Arguments>
FASTRNN_NOINLINE void parts_product(Arguments... arguments) {
  switch (parts_used) {
    case 1:
      return product_of_parts<NV, High, 1>(arguments...);
    case 2:
      return product_of_parts<NV, High, 2>(arguments...);
    default:
      return product_of_parts<NV, High, 3>(arguments...);
  }
}

template <>
struct Multiplying<Parts> : TilesInUse<PartRegisters<2, kMostColumns>::kCount> {
  explicit Multiplying(int parts) { parts_used = parts; }
};

}  // namespace FASTRNN_NAMESPACE
