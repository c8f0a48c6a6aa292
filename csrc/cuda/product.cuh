// The product of a step, in blocks: sums[row][plane][unit] = a[row] . b[plane * units + unit] over
// the depth, both K-contiguous. A block copies stages of both factors to shared memory, several
// ahead; its warps divide the depth, and leave their parts in shared memory, where sum() adds them
// in a fixed order. The last rows, units and bytes of depth of a tile may lie outside; what is
// copied there is zero.
#pragma once

#include "cuda/choose.h"
#include "cuda/device.cuh"

namespace fastrnn::cuda {

// How a warp multiplies. `Stored` is what lies in memory, `Sum` what is added up; an instance holds
// the sums of kTileRows x kColumns, a multiple of 8.
template <class T>
struct TensorCore;  // T: Half, Bfloat16 or Tf32
template <class T>
struct Fma;  // T: float or double

template <class T>
struct StoredType {
  using type = T;
};
template <>
struct StoredType<Tf32> {
  using type = float;
};

template <class T>
struct TensorCore {
  using Stored = typename StoredType<T>::type;
  using Sum = float;

  template <int kColumns>
  class Warp {
    static constexpr int kN = kColumns / 8;
    static_assert(kTileRows == 16);
    float sums_[kN][4] = {};

    // Whatever float there is, the tensor cores would cut it off; rounding is what torch does.
    template <int count>
    FASTRNN_DEVICE static void round(uint32_t (&words)[count]) {
      if constexpr (sizeof(Stored) == 4) {
        FASTRNN_UNROLL
        for (int i = 0; i < count; ++i) {
          float value;
          memcpy(&value, &words[i], 4);
          value = to_tf32(value);
          memcpy(&words[i], &value, 4);
        }
      }
    }

    FASTRNN_DEVICE void multiply(const FragmentA<T>& a, FragmentB<T> b, int n) {
      round(b.x);
      mma(sums_[n], a, b);
    }

   public:
    // Adds the products of 32 bytes of depth; a and b point at the first row and column.
    FASTRNN_DEVICE void add(const char* a, const char* b) {
      auto fragment_a = load_fragment_a<T>(a + lane() % 16 * kStagePitch + lane() / 16 * 16);
      round(fragment_a.x);
      const char* const at = b + lane() % 8 * kStagePitch + lane() / 8 % 2 * 16;
      FASTRNN_UNROLL
      for (int n = 0; n + 1 < kN; n += 2) {
        FragmentB<T> fragment_b[2];
        load_fragment_b<T>(fragment_b, at + (8 * n + lane() / 16 * 8) * kStagePitch);
        multiply(fragment_a, fragment_b[0], n);
        multiply(fragment_a, fragment_b[1], n + 1);
      }
      if constexpr (kN % 2)
        multiply(fragment_a, load_fragment_b<T>(at + 8 * (kN - 1) * kStagePitch), kN - 1);
    }

    // Writes the sums [rows, columns], `pitch` elements from row to row.
    FASTRNN_DEVICE void store_sums(float* to, int pitch) const {
      FASTRNN_UNROLL
      for (int n = 0; n < kN; ++n) {
        float* const at = to + lane() / 4 * pitch + 8 * n + lane() % 4 * 2;
        const float (&d)[4] = sums_[n];
        store<2>(at, Pack<float, 2>{{d[0], d[1]}});
        store<2>(at + 8 * pitch, Pack<float, 2>{{d[2], d[3]}});
      }
    }
  };
};

// Lane l has the rows l / 8 + 4 i and the columns l % 8 + 8 j.
template <class T>
struct Fma {
  using Stored = T;
  using Sum = T;

  template <int kColumns>
  class Warp {
    static constexpr int kM = kTileRows / 4, kN = kColumns / 8;
    T sums_[kM][kN] = {};

   public:
    FASTRNN_DEVICE void add(const char* a, const char* b) {
      FASTRNN_UNROLL
      for (int half = 0; half < 32; half += 16) {
        Pack<T, kPack<T>> column[kN];
        FASTRNN_UNROLL
        for (int n = 0; n < kN; ++n)
          column[n] =
              load16(reinterpret_cast<const T*>(b + (8 * n + lane() % 8) * kStagePitch + half));
        FASTRNN_UNROLL
        for (int m = 0; m < kM; ++m) {
          const auto row =
              load16(reinterpret_cast<const T*>(a + (4 * m + lane() / 8) * kStagePitch + half));
          FASTRNN_UNROLL
          for (int n = 0; n < kN; ++n) {
            FASTRNN_UNROLL
            for (int k = 0; k < kPack<T>; ++k) sums_[m][n] += row.x[k] * column[n].x[k];
          }
        }
      }
    }

    FASTRNN_DEVICE void store_sums(T* to, int pitch) const {
      FASTRNN_UNROLL
      for (int m = 0; m < kM; ++m) {
        FASTRNN_UNROLL
        for (int n = 0; n < kN; ++n)
          to[(4 * m + lane() / 8) * pitch + 8 * n + lane() % 8] = sums_[m][n];
      }
    }
  };
};

// One block's part of a product. All threads of the block call start_weights, set_rows, start_rows
// and run in turn; sum() may be called after that. Weights may be read before the step before has
// ended, rows of a, which start_rows begins with, may not.
template <class Operand, int kPlanes>
class Product {
 public:
  using T = typename Operand::Stored;
  using Sum = typename Operand::Sum;
  static constexpr int kUnits = units_of(kPlanes);

  // b [planes, units, depth] of the direction; the block has the units from `first`. `depth` is the
  // pitch of a and b.
  FASTRNN_DEVICE Product(const void* b, int64_t units, int first, int64_t depth)
      : depth_(static_cast<int>(depth)),
        stages_((depth_ + kDepth - 1) / kDepth),
        b_apart_((kPlanes == 1 ? kRowsApart : kRowsApart / kUnits * units) * depth) {
    const int column = thread() / kChunks, unit = first + column % kUnits;
    const int64_t row = unit < units ? column / kUnits * units + unit : 0;
    units_left_ = static_cast<int>(units - unit);
    b_ = static_cast<const T*>(b) + row * depth;
  }

  // Begins to copy the first stages of the weights.
  FASTRNN_DEVICE void start_weights() {
    FASTRNN_UNROLL
    for (int s = 0; s < kAhead; ++s) copy_weights(s);
  }

  // Row r of the block is row row_of(r) of `a`, or zeros where that is negative.
  template <class RowOf>
  FASTRNN_DEVICE void set_rows(const void* a, RowOf row_of) {
    FASTRNN_UNROLL
    for (int i = 0; i < kCopiesA; ++i) {
      const int64_t row = row_of(thread() / kChunks + i * kRowsApart);
      a_inside_[i] = row >= 0;
      a_[i] = static_cast<const T*>(a) + (row >= 0 ? row : 0) * depth_;
    }
  }

  // Begins to copy the first stages of a.
  FASTRNN_DEVICE void start_rows() {
    FASTRNN_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      copy_rows(s);
      copies_commit();  // the first group has all weights that were started
    }
  }

  // Leaves the sums in shared memory.
  FASTRNN_DEVICE void run() {
    typename Operand::template Warp<kColumns> sums;
    for (int s = 0; s < stages_; ++s) {
      copies_wait<kAhead - 1>();
      block_barrier();  // stage s is there, and what held stage s - 1 is free
      copy_weights(s + kAhead);
      copy_rows(s + kAhead);
      copies_commit();
      sums.add(rows_of(s) + warp() * 32, weights_of(s) + warp() * 32);
    }
    copies_wait<0>();
    block_barrier();
    sums.store_sums(parts() + warp() * kTileRows * kSumsPitch, kSumsPitch);
    block_barrier();
  }

  FASTRNN_DEVICE static Sum sum(int row, int plane, int unit) {
    const Sum* const at = parts() + row * kSumsPitch + plane * kUnits + unit;
    Sum sum = at[0];
    FASTRNN_UNROLL
    for (int part = 1; part < kWarps; ++part) sum += at[part * kTileRows * kSumsPitch];
    return sum;
  }

 private:
  static constexpr int kColumns = kPlanes * kUnits;
  static constexpr int kStageBytes = stage_bytes(kPlanes), kSumsPitch = sums_pitch(kPlanes);
  static constexpr int kAhead = kStages - 1;
  static constexpr int kDepth = kStageDepth / static_cast<int>(sizeof(T));
  // A thread copies the same 16 bytes of each stage, of rows that lie kRowsApart apart; of b those
  // are the same unit of other planes, or other units where there is one plane.
  static constexpr int kChunks = kStageDepth / 16, kRowsApart = kThreads / kChunks;
  static constexpr int kCopiesA = kTileRows / kRowsApart;
  static constexpr int kCopiesB = (kColumns + kRowsApart - 1) / kRowsApart;
  static_assert(kThreads % kChunks == 0 && kTileRows % kRowsApart == 0);
  static_assert(kRowsApart % kUnits == 0 || kPlanes == 1 || kCopiesB == 1);

  FASTRNN_DEVICE static Sum* parts() { return reinterpret_cast<Sum*>(shared_memory()); }

  // Where the factors of stage s lie.
  FASTRNN_DEVICE static char* rows_of(int s) { return shared_memory() + s % kStages * kStageBytes; }
  FASTRNN_DEVICE static char* weights_of(int s) { return rows_of(s) + kTileRows * kStagePitch; }
  // Where this thread copies to, behind these, and from, in elements.
  FASTRNN_DEVICE static int to() {
    return thread() / kChunks * kStagePitch + thread() % kChunks * 16;
  }
  FASTRNN_DEVICE static int from(int s) { return s * kDepth + thread() % kChunks * kPack<T>; }

  FASTRNN_DEVICE void copy_rows(int s) {
    const bool inside = from(s) < depth_;
    FASTRNN_UNROLL
    for (int i = 0; i < kCopiesA; ++i)
      copy_async(rows_of(s) + to() + i * kRowsApart * kStagePitch, a_[i] + (inside ? from(s) : 0),
                 inside && a_inside_[i]);
  }
  FASTRNN_DEVICE void copy_weights(int s) {
    FASTRNN_UNROLL
    for (int i = 0; i < kCopiesB; ++i) {
      const bool inside = (kPlanes == 1 ? i * kRowsApart : 0) < units_left_ && from(s) < depth_;
      // some numbers of columns do not divide evenly
      if (kColumns % kRowsApart == 0 || thread() / kChunks + i * kRowsApart < kColumns)
        copy_async(weights_of(s) + to() + i * kRowsApart * kStagePitch,
                   b_ + (inside ? i * b_apart_ + from(s) : 0), inside);
    }
  }

  const int depth_, stages_;
  const int64_t b_apart_;  // from one of this thread's rows of b to the next
  const T* a_[kCopiesA];
  const T* b_;
  bool a_inside_[kCopiesA];
  int units_left_;  // in the plane, from this thread's unit on
};

}  // namespace fastrnn::cuda
