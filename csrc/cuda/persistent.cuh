// All time steps in one launch. A group of blocks has up to kGroupRows batch rows of one direction,
// and each of its blocks some units, whose weights it keeps in registers and whose c it keeps in
// float. At each step a block multiplies the state of all units by its weights, does its units'
// cells, and sends their new state to the others (states.cuh).
//
// In every product the units are the rows of A, 16 for each mma, and the batch rows the columns of
// B. Depth is taken in pairs of 64 bytes, in an order of its own: lane l takes the 16 bytes from
// 16 (l % 4) on, of both factors, which are the lane's words of two mma. So one load brings both.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/states.cuh"

namespace fastrnn::cuda {

static_assert(kGroupRows == 8);

// The weights of 16 rows, for a lane of a warp: kPairs pairs of depth.
template <class Operand, int kPairs>
struct Resident {
  FragmentA<Operand> a[kPairs][2];

  // at(row, pair) is this lane's piece of a row.
  template <class F>
  FASTRNN_DEVICE void load(F at) {
    FASTRNN_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const Piece low = at(lane() / 4, p), high = at(lane() / 4 + 8, p);
      FASTRNN_UNROLL
      for (int s = 0; s < 2; ++s)
        a[p][s] = {{low.x[2 * s], high.x[2 * s], low.x[2 * s + 1], high.x[2 * s + 1]}};
    }
  }
};

// sums += weights x the rows that begin at `b`: its lane's place in the first pair. Of the pairs
// only the first kUsed are there.
template <int kUsed, class Operand, int kMany, int kPairs>
FASTRNN_DEVICE void multiply(float (&sums)[kMany][4],
                             const Resident<Operand, kPairs> (&weights)[kMany], const char* b) {
  FASTRNN_UNROLL
  for (int p = 0; p < kUsed; ++p) {
    const auto words = load<4>(reinterpret_cast<const uint32_t*>(b + 64 * p));
    FASTRNN_UNROLL
    for (int s = 0; s < 2; ++s) {
      const FragmentB<Operand> fragment{{words.x[2 * s], words.x[2 * s + 1]}};
      FASTRNN_UNROLL
      for (int q = 0; q < kMany; ++q) mma(sums[q], weights[q].a[p][s], fragment);
    }
  }
}
// The same where half of the pairs may be all: one branch, as one for each pair moves registers.
template <class Operand, int kMany, int kPairs>
FASTRNN_DEVICE void multiply(float (&sums)[kMany][4],
                             const Resident<Operand, kPairs> (&weights)[kMany], const char* b,
                             int pairs) {
  if (pairs == kPairs)
    multiply<kPairs>(sums, weights, b);
  else
    multiply<kPairs / 2>(sums, weights, b);
}

// Numbers that follow from the units of a block and from what lies in memory.
template <int kUnits, class T>
struct BlockOf {
  static constexpr int kSplit = depth_split(kUnits), kPairs = kWeightDepth / 64;
  // Of the sums of 16 units a lane has those of two units and two rows. kFinish of the warps that
  // share the depth finish these cells, each lane kCells of them.
  static constexpr int kCells = kSplit < 4 ? 4 / kSplit : 1, kFinish = 4 / kCells;
  // Blocks of a cluster.
  static constexpr int kMost = kUnits == whole_units(sizeof(T)) ? 1 : kMostCluster;
  // Steps for which a thread loads what it needs ahead: as many as registers hold.
  static constexpr int kAhead = kCells < 4 ? 2 : 1;
};

// step(given, i) for every step, with what was loaded for it: in one array, or in two in turn.
template <class Given, int kAhead, class F>
FASTRNN_DEVICE void in_turn(int64_t steps, Given (&given)[kAhead], F step) {
  static_assert(kAhead <= 2);
  for (int64_t i = 0; i < steps; i += kAhead) {
    step(given[0], i);
    if constexpr (kAhead == 2)
      if (i + 1 < steps) step(given[1], i + 1);
  }
}

// How the warps of a block share its sums: each has a part of the depth for 16 units, and of those
// that have the same units some finish the cells.
template <class Block, int G>
class SharedSums {
  static constexpr int kSplit = Block::kSplit, kCells = Block::kCells, kFinish = Block::kFinish;

 public:
  using Sums = Pack<float, G == 1 ? 1 : 4>;
  const int part = warp() % kSplit, sixteen = warp() / kSplit;

  FASTRNN_DEVICE explicit SharedSums(char* parts) : parts_(reinterpret_cast<Sums*>(parts)) {}

  FASTRNN_DEVICE bool finishes() const { return part < kFinish; }
  // Of the m-th cell of this lane: its row of the group, its unit of the block.
  FASTRNN_DEVICE int row(int m) const { return 2 * (lane() % 4) + (part * kCells + m) % 2; }
  FASTRNN_DEVICE int unit(int m) const {
    return 16 * sixteen + lane() / 4 + (part * kCells + m) % 4 / 2 * 8;
  }

  // The sums of this lane's cells, from those that each warp has, which it adds in their order
  // (all warps with the same units).
  FASTRNN_DEVICE void add_up(const float (&sums)[G][4], Sums (&own)[kCells]) const {
    FASTRNN_UNROLL
    for (int cell = 0; cell < 4; ++cell) {
      Sums mine{};
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g) mine.x[g] = sums[g][cell];
      if constexpr (kSplit == 1)
        own[cell] = mine;
      else
        *place(cell / kCells, part, cell % kCells) = mine;
    }
    if constexpr (kSplit > 1) {
      warps_barrier(1 + sixteen, kSplit * 32);
      if (!finishes()) return;
      FASTRNN_UNROLL
      for (int m = 0; m < kCells; ++m) {
        own[m] = *place(part, 0, m);
        FASTRNN_UNROLL
        for (int from = 1; from < kSplit; ++from) {
          const Sums other = *place(part, from, m);
          FASTRNN_UNROLL
          for (int g = 0; g < G; ++g) own[m].x[g] += other.x[g];
        }
      }
    }
  }

 private:
  Sums* const parts_;

  FASTRNN_DEVICE Sums* place(int to, int from, int m) const {
    return parts_ + (((sixteen * kFinish + to) * kSplit + from) * kCells + m) * 32 + lane();
  }
};

template <class Cell, class Operand, int kUnits, bool kMemory>
FASTRNN_KERNEL FASTRNN_BOUNDS(kThreads, 1) void persistent_forward(
    FASTRNN_GRID_CONSTANT const Forward f, FASTRNN_GRID_CONSTANT const Groups groups) {
  using T = typename StoredType<Operand>::type;
  using F = ForwardCell<Cell, T>;
  using Block = BlockOf<kUnits, T>;
  constexpr int G = Cell::kGates, kSplit = Block::kSplit, kPairs = Block::kPairs;
  constexpr int kCells = Block::kCells, kAhead = Block::kAhead;
  using Exchange =
      std::conditional_t<kMemory, ThroughMemory<Operand>, ThroughCluster<Operand, Block::kMost>>;
  const Sizes& s = f.size;
  const GroupPlace at(s, groups, kUnits);
  Exchange states(groups, at, s.hidden);
  const SharedSums<Block, G> shared(states.of(0) + 2 * kGroupRows * states.pitch());
  const int units = at.first_unit + 16 * shared.sixteen;
  const int pairs = groups.depth / (64 * kSplit);
  const int my_depth = shared.part * pairs * 64 + lane() % 4 * 16;
  const int64_t depth = pitch<T>(s.hidden);
  Resident<Operand, kPairs> weights[G];
  FASTRNN_UNROLL
  for (int g = 0; g < G; ++g)
    weights[g].load([&](int row, int p) {
      const int64_t from = (my_depth + 64 * p) / static_cast<int>(sizeof(T));
      const T* const of =
          static_cast<const T*>(f.w_hh) + ((at.d * G + g) * s.hidden + units + row) * depth + from;
      return load_factors<Operand>(of, p < pairs && units + row < s.hidden && from < depth);
    });

  states.begin(at, static_cast<const T*>(f.h) + (at.d * s.batch + at.first_row) * depth, f.ring);
  static_assert(!kMemory || kUnits == 16);
  if (units >= s.hidden) return;  // of a block that has others, and no block_barrier in the loop

  const auto row = [&](int m) { return shared.row(m); };
  const auto n = [&](int m) { return at.first_row + shared.row(m); };
  const auto unit = [&](int m) { return at.first_unit + shared.unit(m); };
  int length[kCells];
  typename F::Bias bias[kCells];
  float kept[kCells], h[kCells];
  struct Given {
    F cell;
    bool reset;
  } given[kAhead][kCells];
  const auto fetch = [&](Given(&to)[kCells], int64_t i) {
    if (i >= s.steps) return;
    const Step step(s, at.d, i);
    FASTRNN_UNROLL
    for (int m = 0; m < kCells; ++m) {
      const bool inside = step.t < length[m];
      to[m].cell.load(f, step, n(m), unit(m), inside);
      to[m].reset = inside && Row::is_reset(s, step.t, n(m));
    }
  };
  FASTRNN_UNROLL
  for (int m = 0; m < kCells; ++m) {
    const bool inside = shared.finishes() && row(m) < at.rows && unit(m) < s.hidden;
    length[m] = inside ? static_cast<int>(Row::length(s, n(m))) : 0;
    bias[m] = F::load_bias(f, at.d, unit(m));
    const int64_t in_state = at.d * s.batch + n(m);
    kept[m] = kKeeps<Cell> && inside
                  ? static_cast<const float*>(f.kept)[in_state * s.hidden + unit(m)]
                  : 0;
    h[m] = inside ? to_float(static_cast<const T*>(f.h)[in_state * depth + unit(m)]) : 0;
  }
  FASTRNN_UNROLL
  for (int i = 0; i < kAhead; ++i) fetch(given[i], i);

  in_turn(s.steps, given, [&](Given(&with)[kCells], int64_t i) {
    if (i > 0) states.receive(i - 1);
    float sums[G][4] = {};
    multiply(sums, weights, states.of(i + 1) + lane() / 4 * states.pitch() + my_depth, pairs);
    typename SharedSums<Block, G>::Sums own[kCells];
    shared.add_up(sums, own);
    if (!shared.finishes()) return;
    const Step step(s, at.d, i);
    FASTRNN_UNROLL
    for (int m = 0; m < kCells; ++m) {
      const Given& now = with[m];
      const Row r(step, n(m), length[m], now.reset);
      const auto made = now.cell.run(r, bias[m], kept[m], [&](int g) { return own[m].x[g]; });
      if (r.active()) kept[m] = made.kept(), h[m] = made.h;
      if (i + 1 < s.steps) states.send(i, row(m), unit(m), h[m], row(m) < at.rows);
      if (!r.active()) continue;
      write_state<T>(f, step, r, unit(m), made.h);
      F::save(f, step, r, unit(m), made);
    }
    fetch(with, i + kAhead);
  });
  FASTRNN_UNROLL
  for (int m = 0; m < kCells; ++m)
    if (kKeeps<Cell> && length[m] > 0)
      static_cast<float*>(f.kept)[(at.d * s.batch + n(m)) * s.hidden + unit(m)] = kept[m];
}

}  // namespace fastrnn::cuda
