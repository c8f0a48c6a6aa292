// The persistent schedule backward, in two ways. Blocks of a cluster keep the columns of w_hh that
// belong to their units' gates, make of these gates' gradients a part of the gradient of every h,
// and send the parts to the blocks that have the units: half of the bytes that gradients of gates
// would take. Blocks that go through memory, where parts would be written by all for all, keep the
// columns of w_hh that belong to their units' h, and send the gradients of gates.
#pragma once

#include "cuda/persistent.cuh"

namespace fastrnn::cuda {

// Numbers of a block that sends parts.
template <int kPlanes, int kUnits, class T>
struct PartsOf {
  static constexpr int kDepth = kPlanes * kUnits * static_cast<int>(sizeof(T));  // bytes
  static constexpr int kPitch = exchange_pitch(kDepth);
  static constexpr int kCells = kUnits * kGroupRows / kThreads;  // of a thread
  static constexpr int kAhead = kCells < 4 ? 2 : 1;              // as in BlockOf
  // Tiles of 16 units of which a warp makes parts; bytes of a source's parts.
  static constexpr int kTiles = (most_hidden(kUnits, sizeof(T)) + 127) / 128;
  static constexpr int kSlot = kUnits * kGroupRows * 4;
};

// What a thread has of a backward loop: a unit of a row.
template <class Cell, class T>
class BackwardUnit {
  static constexpr int G = Cell::kGates;
  using B = BackwardCell<Cell, T>;
  int n_, unit_, length_;
  bool reset_after_ = false;
  float kept_;

  FASTRNN_DEVICE int64_t in_kept(const Backward& b, int d) const {
    return (d * b.size.batch + n_) * b.size.hidden + unit_;
  }

 public:
  using Made = typename B::Made;
  struct Given {
    B cell;
    bool reset;
  };

  FASTRNN_DEVICE void begin(const Backward& b, int d, int n, int unit, bool inside) {
    n_ = n, unit_ = unit;
    length_ = inside ? static_cast<int>(Row::length(b.size, n)) : 0;
    kept_ = kKeeps<Cell> && length_ > 0 ? static_cast<const float*>(b.d_kept)[in_kept(b, d)] : 0;
  }
  // Loads what a step needs that no step of the loop writes.
  FASTRNN_DEVICE void load(const Backward& b, const BackwardStep& step, Given& to) const {
    const Row r(step, n_, length_, false);
    to.cell.load(b, step, r, unit_);
    to.reset = r.active() && Row::is_reset(b.size, step.t, n_);
  }
  // Whether the row takes part in the step; then `made` is what it makes. sum() is the product.
  template <class SumOf>
  FASTRNN_DEVICE bool run(const Backward& b, const BackwardStep& step, const Given& given,
                          Made& made, SumOf sum) {
    const BackwardRow r(step, Row(step, n_, length_, given.reset), reset_after_);
    reset_after_ = given.reset;
    made = given.cell.run(b, r, kept_, sum);
    if (r.active()) kept_ = made.kept;
    return r.active();
  }
  FASTRNN_DEVICE void write(const Backward& b, const BackwardStep& step, const Made& made) const {
    const Row r(step, n_, length_, false);
    if (r.active()) B::write_gradients(b, step, r, unit_, made);
  }
  FASTRNN_DEVICE void end(const Backward& b, int d) const {
    if (kKeeps<Cell> && length_ > 0) static_cast<float*>(b.d_kept)[in_kept(b, d)] = kept_;
  }
};

template <class Cell, class Operand, int kUnits>
FASTRNN_KERNEL FASTRNN_BOUNDS(kThreads, 1) void persistent_backward(
    FASTRNN_GRID_CONSTANT const Backward b, FASTRNN_GRID_CONSTANT const Groups groups) {
  using T = typename StoredType<Operand>::type;
  using Unit = BackwardUnit<Cell, T>;
  using Block = PartsOf<Cell::kGates, kUnits, T>;
  constexpr int G = Cell::kGates, kPairs = Block::kDepth / 64, kTiles = Block::kTiles;
  constexpr int kCells = Block::kCells, kAhead = Block::kAhead;
  constexpr int kPitch = Block::kPitch, kSlot = Block::kSlot;
  const Sizes& s = b.size;
  const GroupPlace at(s, groups, kUnits);
  const int64_t depth = pitch<T>(s.hidden);
  const int tiles = static_cast<int>((s.hidden + 15) / 16);

  Resident<Operand, kPairs> weights[kTiles];
  FASTRNN_UNROLL
  for (int m = 0; m < kTiles; ++m)
    weights[m].load([&](int row, int p) {
      const int64_t of = (warp() * kTiles + m) * 16 + row;
      const int column = (64 * p + lane() % 4 * 16) / static_cast<int>(sizeof(T)),
                g = column / kUnits;
      const int64_t unit = at.first_unit + column % kUnits;
      const T* const from =
          static_cast<const T*>(b.w_hh) + ((at.d * s.hidden + of) * G + g) * depth + unit;
      return load_factors<Operand>(from, of < s.hidden && unit < depth);
    });

  // Lanes send the sums of two units and two rows at once.
  const int64_t my_units = s.hidden - at.first_unit < kUnits ? s.hidden - at.first_unit : kUnits;
  const int64_t bytes = at.blocks * ((my_units + 15) / 16) * 8 * ((at.rows + 1) / 2) * 16;
  Arrivals arrivals(static_cast<uint32_t>(bytes));
  char* const gradients = shared_memory() + kArrivalBytes;  // [2, kGroupRows, G, kUnits] of u
  char* const slots = gradients + 2 * kGroupRows * kPitch;  // [2, blocks, kUnits, kGroupRows]
  for (int k = thread(); k < 2 * kGroupRows * kPitch / 4; k += kThreads)
    reinterpret_cast<uint32_t*>(gradients)[k] = 0;
  cluster_barrier();

  // Of a slot this thread has every kThreads-th element: [tile, lane, 4] as the sums lie.
  Unit cells[kCells];
  int row[kCells], unit[kCells];
  FASTRNN_UNROLL
  for (int m = 0; m < kCells; ++m) {
    const int element = thread() + kThreads * m, of_lane = element % 128 / 4;
    row[m] = 2 * (of_lane % 4) + element % 2;
    unit[m] = 16 * (element / 128) + of_lane / 4 + element % 4 / 2 * 8;
    cells[m].begin(b, at.d, at.first_row + row[m], at.first_unit + unit[m],
                   row[m] < at.rows && at.first_unit + unit[m] < s.hidden);
  }
  typename Unit::Given given[kAhead][kCells];
  const auto fetch = [&](typename Unit::Given(&to)[kCells], int64_t i) {
    if (i < 0) return;
    const BackwardStep step(b, at.d, i);
    FASTRNN_UNROLL
    for (int m = 0; m < kCells; ++m) cells[m].load(b, step, to[m]);
  };
  FASTRNN_UNROLL
  for (int turn = 0; turn < kAhead; ++turn) fetch(given[turn], s.steps - 1 - turn);

  // Turns count from the last step.
  in_turn(s.steps, given, [&](typename Unit::Given(&with)[kCells], int64_t turn) {
    const int64_t i = s.steps - 1 - turn;
    const BackwardStep step(b, at.d, i);
    if (turn > 0) arrivals.wait(turn - 1);
    const auto* const sent =
        reinterpret_cast<const float*>(slots + (turn + 1) % 2 * at.blocks * kSlot) + thread();
    char* const place = gradients + turn % 2 * kGroupRows * kPitch;
    typename Unit::Made made[kCells];
    FASTRNN_UNROLL
    for (int m = 0; m < kCells; ++m) {
      const auto sum = [&] {
        float total = 0;
        for (int from = 0; from < at.blocks; ++from)
          total += sent[from * (kSlot / 4) + kThreads * m];
        return total;
      };
      if (!cells[m].run(b, step, with[m], made[m], sum)) continue;
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g)
        reinterpret_cast<T*>(place + row[m] * kPitch)[g * kUnits + unit[m]] =
            as_factor<Operand>(made[m].du[g]);
    }
    block_barrier();
    if (turn + 1 < s.steps) {
      float sums[kTiles][4] = {};
      multiply<kPairs>(sums, weights, place + lane() / 4 * kPitch + lane() % 4 * 16);
      FASTRNN_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const int tile = warp() * kTiles + m, tile_there = tile % (kUnits / 16);
        if (tile >= tiles || 2 * (lane() % 4) >= at.rows) continue;
        Piece piece;
        memcpy(&piece, sums[m], 16);
        const size_t slot = offset_of(slots) + (turn % 2 * at.blocks + at.rank) * kSlot +
                            (tile_there * 32 + lane()) * 16;
        const Remote to = remote(shared_memory(), tile / (kUnits / 16));
        store_remote(to + slot, piece, to + offset_of(arrivals.count(turn)));
      }
    }
    FASTRNN_UNROLL
    for (int m = 0; m < kCells; ++m) cells[m].write(b, step, made[m]);
    fetch(with, i - kAhead);
  });
  FASTRNN_UNROLL
  for (int m = 0; m < kCells; ++m) cells[m].end(b, at.d);
}

template <class Cell, class Operand>
FASTRNN_KERNEL FASTRNN_BOUNDS(kThreads, 1) void persistent_backward_through_memory(
    FASTRNN_GRID_CONSTANT const Backward b, FASTRNN_GRID_CONSTANT const Groups groups) {
  using T = typename StoredType<Operand>::type;
  using Unit = BackwardUnit<Cell, T>;
  using Block = BlockOf<kGridUnits, T>;
  constexpr int G = Cell::kGates, kPairs = G * Block::kPairs, kSplit = Block::kSplit;
  static_assert(Block::kCells == 1 && Block::kAhead == 2);
  const Sizes& s = b.size;
  const GroupPlace at(s, groups, kGridUnits);
  const int64_t plane = pitch<T>(s.hidden), depth = G * plane;
  ThroughMemory<Operand> gradients(groups, at, depth);
  const SharedSums<Block, 1> shared(gradients.of(0) + 2 * kGroupRows * gradients.pitch());
  const int pairs = groups.depth / (64 * kSplit);
  const int my_depth = shared.part * pairs * 64 + lane() % 4 * 16;
  Resident<Operand, kPairs> weights[1];
  weights[0].load([&](int row, int p) {
    const int64_t of = at.first_unit + row,
                  from = (my_depth + 64 * p) / static_cast<int>(sizeof(T));
    const T* const here = static_cast<const T*>(b.w_hh) + (at.d * s.hidden + of) * depth + from;
    return load_factors<Operand>(here, p < pairs && of < s.hidden && from < depth);
  });
  gradients.begin(at, nullptr, b.ring);

  const int row = shared.row(0), unit = at.first_unit + shared.unit(0);
  Unit cell;
  cell.begin(b, at.d, at.first_row + row, unit,
             shared.finishes() && row < at.rows && unit < s.hidden);
  typename Unit::Given given[2];
  const auto fetch = [&](typename Unit::Given& to, int64_t i) {
    if (i >= 0) cell.load(b, BackwardStep(b, at.d, i), to);
  };
  fetch(given[0], s.steps - 1);
  fetch(given[1], s.steps - 2);
  in_turn(s.steps, given, [&](typename Unit::Given& with, int64_t turn) {
    const int64_t i = s.steps - 1 - turn;
    const BackwardStep step(b, at.d, i);
    if (turn > 0) gradients.receive(turn - 1);
    float sums[1][4] = {};
    multiply(sums, weights, gradients.of(turn + 1) + lane() / 4 * gradients.pitch() + my_depth,
             pairs);
    typename SharedSums<Block, 1>::Sums own[1];
    shared.add_up(sums, own);
    if (!shared.finishes()) return;
    typename Unit::Made made;
    const bool active = cell.run(b, step, with, made, [&] { return own[0].x[0]; });
    if (turn + 1 < s.steps) {
      FASTRNN_UNROLL
      for (int g = 0; g < G; ++g)
        gradients.send(turn, row, static_cast<int>(g * plane) + unit, active ? made.du[g] : 0,
                       row < at.rows && unit < plane);
    }
    cell.write(b, step, made);
    fetch(with, i - 2);
  });
  cell.end(b, at.d);
}

}  // namespace fastrnn::cuda
