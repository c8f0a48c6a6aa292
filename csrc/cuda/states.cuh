// What the blocks of a group hand to each other in the persistent schedule: the new state of each
// unit, forward, or parts of its gradient, backward. A block waits only for its own copy of what
// all have sent: there is no barrier of the group inside the loop. What comes has two places, which
// steps use in turn; a block that sends for the step after the next has everybody's answer to the
// last one, so nobody still reads what it overwrites.
//
// Blocks of a cluster send to each other's shared memory. For layers that no cluster holds there is
// a ring in global memory, and all blocks must run at the same time.
#pragma once

#include "cuda/choose.h"
#include "cuda/exchange.cuh"
#include "cuda/product.cuh"
#include "cuda/steps.h"

namespace fastrnn::cuda {

// A float as a factor of a product.
template <class Operand>
FASTRNN_DEVICE typename StoredType<Operand>::type as_factor(float x) {
  if constexpr (sizeof(typename StoredType<Operand>::type) == 4)
    return to_tf32(x);
  else
    return from_float<typename StoredType<Operand>::type>(x);
}

// From the beginning of the block's shared memory.
FASTRNN_DEVICE size_t offset_of(const void* shared) {
  return static_cast<size_t>(static_cast<const char*>(shared) - shared_memory());
}

// 16 bytes of factors as they lie in memory, or zeros.
template <class Operand, class T>
FASTRNN_DEVICE Piece load_factors(const T* from, bool inside) {
  Piece piece{};
  if (!inside) return piece;
  auto pack = load16(from);
  if constexpr (sizeof(T) == 4) {
    FASTRNN_UNROLL
    for (int i = 0; i < kPack<T>; ++i) pack.x[i] = as_factor<Operand>(pack.x[i]);
  }
  memcpy(&piece, &pack, sizeof piece);
  return piece;
}

// Which part of the layer a block has.
struct GroupPlace {
  int group, rank, blocks, d, first_row, rows, first_unit;

  FASTRNN_DEVICE GroupPlace(const Sizes& s, const Groups& groups, int units)
      : group(block() / static_cast<int>(groups.blocks)),
        rank(block() % static_cast<int>(groups.blocks)),
        blocks(static_cast<int>(groups.blocks)),
        d(group % static_cast<int>(s.directions)),
        first_row(group / static_cast<int>(s.directions) * static_cast<int>(groups.rows)),
        rows(static_cast<int>(groups.rows)),
        first_unit(rank * units) {
    if (rows > s.batch - first_row) rows = static_cast<int>(s.batch) - first_row;
  }
};

// Two counts of bytes, for the two places that steps use in turn.
class Arrivals {
  uint64_t* counts_;
  uint32_t bytes_;  // of a step

 public:
  // Before a cluster_barrier. `bytes` come for each step but the first.
  FASTRNN_DEVICE explicit Arrivals(uint32_t bytes)
      : counts_(reinterpret_cast<uint64_t*>(shared_memory())), bytes_(bytes) {
    if (thread() != 0) return;
    for (int k = 0; k < 2; ++k) {
      arrivals_begin(&counts_[k]);
      arrivals_expect(&counts_[k], bytes);
    }
  }
  FASTRNN_DEVICE const uint64_t* count(int64_t step) const { return &counts_[step % 2]; }
  // Waits for what all blocks sent in a step.
  FASTRNN_DEVICE void wait(int64_t step) {
    arrivals_wait(&counts_[step % 2], static_cast<uint32_t>(step / 2 % 2));
    if (thread() == 0) arrivals_expect(&counts_[step % 2], bytes_);
  }
};

// The state of the group's rows, of all units, as factors: what a step made lies in place step % 2
// of the shared memory of every block.
template <class Operand>
class States {
 protected:
  using T = typename StoredType<Operand>::type;
  static constexpr int kShare = kPack<T>;  // units of a piece, and lanes that have one each
  char* const places_;
  const int pitch_, pieces_;  // from row to row, of a row

  FASTRNN_DEVICE States(const Groups& groups, int64_t width)
      : places_(shared_memory() + kArrivalBytes),
        pitch_(groups.pitch),
        pieces_(static_cast<int>((width + kShare - 1) / kShare)) {}

  // Everything zero but for the initial state, which lies as that of step 1 would. The rows of
  // `initial` are `pieces_` long; null: zeros.
  FASTRNN_DEVICE void fill(const void* initial, int rows) {
    for (int k = thread(); k < 2 * kGroupRows * pitch_ / 16; k += kThreads) {
      const int row = k * 16 / pitch_ - kGroupRows, piece = (k * 16 % pitch_) / 16;
      const int64_t at = (static_cast<int64_t>(row) * pieces_ + piece) * kShare;
      const Piece value =
          load_factors<Operand>(static_cast<const T*>(initial) + at,
                                initial != nullptr && row >= 0 && row < rows && piece < pieces_);
      memcpy(places_ + k * 16, &value, 16);
    }
  }

  // The units of a piece, of which this lane has one (warp).
  FASTRNN_DEVICE static Piece gather(float value) {
    const T factor = as_factor<Operand>(value);
    uint32_t word = 0;
    memcpy(&word, &factor, sizeof factor);
    int mask = 4;  // lanes that differ in it have neighbours among the units
    if constexpr (sizeof(T) == 2) {
      const uint32_t other = shuffle_xor(word, mask);
      word = (lane() & mask) == 0 ? word | other << 16 : other | word << 16;
      mask *= 2;
    }
    const uint32_t other = shuffle_xor(word, mask);
    const uint32_t first = (lane() & mask) == 0 ? word : other;
    const uint32_t second = (lane() & mask) == 0 ? other : word;
    mask *= 2;
    const uint32_t third = shuffle_xor(first, mask), fourth = shuffle_xor(second, mask);
    if ((lane() & mask) == 0) return {{first, second, third, fourth}};
    return {{third, fourth, first, second}};
  }

 public:
  FASTRNN_DEVICE int pitch() const { return pitch_; }
  FASTRNN_DEVICE char* of(int64_t step) const { return places_ + step % 2 * kGroupRows * pitch_; }
};

// States that blocks of a cluster, up to kMost of them, store in each other's memory.
template <class Operand, int kMost>
class ThroughCluster : public States<Operand> {
  using Base = States<Operand>;
  using typename Base::T;
  static constexpr int kShare = Base::kShare, kTargets = (kMost + kShare - 1) / kShare;
  Arrivals arrivals_;
  const int blocks_;
  Remote to_[kTargets];  // this lane sends to the ranks lane / 4 % kShare, that and kShare, ...

 public:
  FASTRNN_DEVICE ThroughCluster(const Groups& groups, const GroupPlace& at, int64_t width)
      : Base(groups, width),
        arrivals_(static_cast<uint32_t>(at.rows * Base::pieces_ * 16)),
        blocks_(at.blocks) {}

  // All threads of the group's blocks; `initial` as in fill.
  FASTRNN_DEVICE void begin(const GroupPlace& at, const void* initial, void*) {
    Base::fill(initial, at.rows);
    cluster_barrier();
    FASTRNN_UNROLL
    for (int k = 0; k < kTargets; ++k) {
      const int rank = lane() / 4 % kShare + k * kShare;
      to_[k] = remote(shared_memory(), rank < blocks_ ? rank : 0);
    }
  }

  // Waits for what a step made.
  FASTRNN_DEVICE void receive(int64_t step) { arrivals_.wait(step); }

  // Sends the new state of this lane's unit of a row, if that is `inside` (warp).
  FASTRNN_DEVICE void send(int64_t step, int row, int unit, float value, bool inside) {
    const Piece piece = Base::gather(value);
    const int number = unit / kShare;
    if (!inside || number >= Base::pieces_) return;
    const size_t at = offset_of(Base::of(step) + row * Base::pitch_ + number * 16);
    const size_t count = offset_of(arrivals_.count(step));
    FASTRNN_UNROLL
    for (int k = 0; k < kTargets; ++k)
      if (lane() / 4 % kShare + k * kShare < blocks_)
        store_remote(to_[k] + at, piece, to_[k] + count);
  }
};

// States that go through a ring in global memory, [groups, 2, kGroupRows, pieces], zero at first.
// The lowest bit of a piece says in which round of the ring it was written. It is the last bit of
// the piece's first factor, which is rounded to one bit less for it; a Tf32 has bits to spare.
template <class Operand>
class ThroughMemory : public States<Operand> {
  using Base = States<Operand>;
  using typename Base::T;
  static constexpr int kShare = Base::kShare;
  static constexpr int kAtOnce = 4;  // pieces that a thread asks for before it waits for one
  char* ring_ = nullptr;
  const int count_;  // of the group's pieces

  FASTRNN_DEVICE char* in_ring(int64_t step, int number) const {
    return ring_ + (step % 2 * kGroupRows * Base::pieces_ + number) * 16;
  }
  FASTRNN_DEVICE static uint32_t bit(int64_t step) {
    return static_cast<uint32_t>(step / 2 + 1) & 1;
  }
  FASTRNN_DEVICE static void mark(Piece& piece, uint32_t bit) {
    uint32_t& word = piece.x[0];
    if constexpr (sizeof(T) == 2) {
      // To an even number, ties to one whose half is even; what is not finite only loses its bit,
      // which no infinity has and a NaN does not need.
      constexpr uint32_t kLargest = std::is_same_v<T, Half> ? 0x7bff : 0x7f7f;
      if ((word & 0x7fff) < kLargest) word += word >> 1 & word & 1;
    }
    word = (word & ~1u) | bit;
  }

 public:
  FASTRNN_DEVICE ThroughMemory(const Groups& groups, const GroupPlace& at, int64_t width)
      : Base(groups, width), count_(at.rows * Base::pieces_) {}

  FASTRNN_DEVICE void begin(const GroupPlace& at, const void* initial, void* ring) {
    ring_ = static_cast<char*>(ring) +
            static_cast<int64_t>(at.group) * 2 * kGroupRows * Base::pieces_ * 16;
    Base::fill(initial, at.rows);
    block_barrier();
  }

  FASTRNN_DEVICE void receive(int64_t step) {
    for (int first = thread(); first < count_; first += kAtOnce * kThreads) {
      Piece pieces[kAtOnce];
      FASTRNN_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int number = first + k * kThreads;
        if (number < count_) pieces[k] = peek(in_ring(step, number));
      }
      FASTRNN_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int number = first + k * kThreads;
        if (number >= count_) break;
        await(pieces[k], in_ring(step, number), bit(step));
        pieces[k].x[0] &= ~1u;
        memcpy(Base::of(step) + number / Base::pieces_ * Base::pitch_ + number % Base::pieces_ * 16,
               &pieces[k], 16);
      }
    }
    block_barrier();
  }

  FASTRNN_DEVICE void send(int64_t step, int row, int unit, float value, bool inside) {
    Piece piece = Base::gather(value);
    const int number = unit / kShare;
    if (!inside || number >= Base::pieces_ || lane() / 4 % kShare != 0) return;
    mark(piece, bit(step));
    publish(in_ring(step, row * Base::pieces_ + number), piece);
  }
};

}  // namespace fastrnn::cuda
