// The names of device.cuh on the host, for kernels that run in the machine of machine.h.
//
// Wherever hardware leaves something undefined, this makes it show: shared memory begins as NaN,
// the destination of a copy is NaN until its wait, addresses are checked for alignment and place, a
// name for a warp or a block that is not reached by all is an error.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/choose.h"
#include "cuda/shape.h"
#include "machine.h"

#define FASTRNN_KERNEL
#define FASTRNN_DEVICE inline
#define FASTRNN_GRID_CONSTANT
#define FASTRNN_BOUNDS(threads, blocks)
#define FASTRNN_UNROLL

namespace fastrnn::cuda {

using emulate::Fault;
using emulate::Where;

inline int thread() { return emulate::self().index; }
inline int block() { return emulate::self().block->index; }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline char* shared_memory() { return emulate::self().block->shared; }

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_float(Half x) {
  // The exponent, taken as a float's, is 112 too small, also of subnormal numbers.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const float value = magnitude >= 0x0f800000u  // infinite or NaN
                          ? std::bit_cast<float>(magnitude | 0x7f800000u)
                          : std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

inline Half to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    magnitude = 0x7fff;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    magnitude = 0x7c00;  // from 65520 on: infinity
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the unit is 2^-24, which is that of floats from 0.5 on.
    magnitude = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                std::bit_cast<uint32_t>(0.5f);
  } else {
    magnitude = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | magnitude)};
}
inline Bfloat16 to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, Half>)
    return to_half(x);
  else if constexpr (std::is_same_v<T, Bfloat16>)
    return to_bfloat16(x);
  else
    return x;
}
inline float to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return std::bit_cast<float>(0x7fffffffu);
  return std::bit_cast<float>((bits + 0x1000u) & ~0x1fffu);
}

inline float quick_exp2(float x) { return std::exp2(x); }
inline float quick_reciprocal(float x) { return 1 / x; }

namespace emulate {

inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    throw Fault(std::string(what) + ": address not aligned to " + std::to_string(bytes) + " bytes");
}
inline void check_shared(const void* address, size_t bytes, const char* what) {
  if (!self().block->holds(address, bytes))
    throw Fault(std::string(what) + ": address outside of the block's shared memory");
}

}  // namespace emulate

template <int count, class T>
Pack<T, count> load(const T* from) {
  Pack<T, count> pack;
  emulate::check_aligned(from, sizeof pack, "load");
  std::memcpy(&pack, from, sizeof pack);
  return pack;
}
template <int count, class T>
void store(T* to, const Pack<T, count>& pack) {
  emulate::check_aligned(to, sizeof pack, "store");
  std::memcpy(to, &pack, sizeof pack);
}
template <int count, class T>
Pack<T, count> load_uncached(const T* from) {
  return load<count>(from);
}

// The source is read now, and must be the same at the wait; the destination is written only then,
// and must not have been.
inline void copy_async(void* shared, const void* global, bool inside) {
  emulate::check_aligned(shared, 16, "copy_async to");
  emulate::check_aligned(global, 16, "copy_async from");
  emulate::check_shared(shared, 16, "copy_async to");
  emulate::Thread& me = emulate::self();
  emulate::Thread::Copy copy{shared, inside ? global : nullptr, {}, me.group};
  if (inside) std::memcpy(copy.bytes, global, 16);
  std::memset(shared, emulate::kPoison, 16);
  me.copies.push_back(copy);
}
inline void copies_commit() { ++emulate::self().group; }
template <int pending>
void copies_wait() {
  emulate::Thread& me = emulate::self();
  size_t done = 0;
  for (; done < me.copies.size() && me.copies[done].group < me.group - pending; ++done) {
    const auto& copy = me.copies[done];
    unsigned char poison[16];
    std::memset(poison, emulate::kPoison, 16);
    if (std::memcmp(copy.to, poison, 16) != 0)
      throw Fault("copies_wait: the destination of a copy was written meanwhile");
    if (copy.from != nullptr && std::memcmp(copy.from, copy.bytes, 16) != 0)
      throw Fault("copies_wait: the source of a copy was written meanwhile");
    std::memcpy(copy.to, copy.bytes, 16);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

inline void block_barrier(Where where = Where::current()) {
  emulate::Block& block = *emulate::self().block;
  if (block.alive < block.size) throw Fault("block_barrier: other threads of the block have ended");
  if (block.at_barrier == 0)
    block.barrier = where;
  else if (block.barrier.line() != where.line() || block.barrier.column() != where.column())
    throw Fault("the block diverges: other threads are at block_barrier (" +
                emulate::text(block.barrier) + ")");
  if (++block.at_barrier < block.size) return emulate::wait("block_barrier", where);
  block.at_barrier = 0;
  for (emulate::Warp& warp : block.warps) warp.ready = ~0u;
  block.warps[static_cast<size_t>(warp())].ready &= ~(1u << lane());
}
namespace emulate {

// ldmatrix: lane l gives the address of row l % 8 of the 8 x 16-byte matrix l / 8, and gets word
// l % 4 of row l / 4 of each matrix.
template <int count>
void load_matrices(uint32_t (&x)[count], const void* shared, const char* name, Where where) {
  check_aligned(shared, 16, name);
  if (lane() < 8 * count) check_shared(shared, 16, name);
  struct Operand {
    const void* row;
    uint32_t* x;
  } mine{shared, x};
  collective(name, where, mine, [](Operand** operands) {
    for (int m = 0; m < count; ++m)
      for (int row = 0; row < 8; ++row) {
        uint32_t words[4];
        std::memcpy(words, operands[8 * m + row]->row, sizeof words);
        for (int w = 0; w < 4; ++w) operands[4 * row + w]->x[m] = words[w];
      }
  });
}

// The values of one word of a fragment, in the order of K.
template <class Operand>
struct Unpack {
  static constexpr int kCount = 2;
  static void to(float* values, uint32_t word) {
    values[0] = to_float(Operand{static_cast<uint16_t>(word)});
    values[1] = to_float(Operand{static_cast<uint16_t>(word >> 16)});
  }
};
template <>
struct Unpack<Tf32> {
  static constexpr int kCount = 1;
  static void to(float* values, uint32_t word) {
    *values = std::bit_cast<float>(word & 0xffffe000u);  // the hardware ignores the rest
  }
};

template <class Operand>
void mma(float (&d)[4], const FragmentA<Operand>& a, const FragmentB<Operand>& b, Where where) {
  struct Operands {
    float* d;
    const FragmentA<Operand>& a;
    const FragmentB<Operand>& b;
  } mine{d, a, b};
  collective("mma", where, mine, [](Operands** all) {
    constexpr int kCount = Unpack<Operand>::kCount, kDepth = 8 * kCount;
    typedef float Row __attribute__((vector_size(32)));
    float a[16][kDepth];  // [row][k]
    float b[8][kDepth];   // [column][k]
    Row d[16];
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; ++i) {
        Unpack<Operand>::to(a[g + 8 * (i % 2)] + kCount * (t + 4 * (i / 2)), all[l]->a.x[i]);
        d[g + 8 * (i / 2)][2 * t + i % 2] = all[l]->d[i];
      }
      for (int i = 0; i < 2; ++i) Unpack<Operand>::to(b[g] + kCount * (t + 4 * i), all[l]->b.x[i]);
    }
    for (int k = 0; k < kDepth; ++k) {
      Row column;
      for (int n = 0; n < 8; ++n) column[n] = b[n][k];
      for (int row = 0; row < 16; ++row) d[row] += a[row][k] * column;
    }
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) all[l]->d[i] = d[l / 4 + 8 * (i / 2)][l % 4 * 2 + i % 2];
  });
}

}  // namespace emulate

template <class Operand>
FragmentA<Operand> load_fragment_a(const void* shared, Where where = Where::current()) {
  FragmentA<Operand> a;
  emulate::load_matrices(a.x, shared, "load_fragment_a", where);
  return a;
}
template <class Operand>
void load_fragment_b(FragmentB<Operand> (&b)[2], const void* shared,
                     Where where = Where::current()) {
  uint32_t x[4];
  emulate::load_matrices(x, shared, "load_fragment_b", where);
  for (int i = 0; i < 4; ++i) b[i / 2].x[i % 2] = x[i];
}
template <class Operand>
FragmentB<Operand> load_fragment_b(const void* shared, Where where = Where::current()) {
  FragmentB<Operand> b;
  emulate::load_matrices(b.x, shared, "load_fragment_b", where);
  return b;
}
inline void mma(float (&d)[4], const FragmentA<Half>& a, const FragmentB<Half>& b,
                Where where = Where::current()) {
  emulate::mma(d, a, b, where);
}
inline void mma(float (&d)[4], const FragmentA<Bfloat16>& a, const FragmentB<Bfloat16>& b,
                Where where = Where::current()) {
  emulate::mma(d, a, b, where);
}
inline void mma(float (&d)[4], const FragmentA<Tf32>& a, const FragmentB<Tf32>& b,
                Where where = Where::current()) {
  emulate::mma(d, a, b, where);
}

// Lets a launch that overlaps begin. The thread pauses until that has run as far as it gets.
inline void next_grid_start(Where where = Where::current()) {
  emulate::Block& block = *emulate::self().block;
  if (!std::exchange(block.next_may_start, true)) ++block.grid.next_may_start;
  emulate::wait_until(
      [](const emulate::Thread& t) { return t.block->grid.next == nullptr || t.block->grid.alone; },
      "next_grid_start", where);
}
// Behind the wait the next launch may begin whether it was let or not: it might as well have begun
// later and not see yet what this launch writes from here on.
inline void previous_grid_wait(Where where = Where::current()) {
  emulate::wait_until([](const emulate::Thread& t) { return t.block->grid.previous == nullptr; },
                      "previous_grid_wait", where);
  next_grid_start(where);
}

namespace emulate {
inline Device device{132, 9};           // an H200
inline int largest_cluster = 16;        // blocks of a cluster that can run
inline std::set<std::string> launched;  // names of kernels
}  // namespace emulate

inline Device device_facts() { return emulate::device; }
inline const char* misfit(const void*) { return nullptr; }
inline Versions versions() { return {13000, 13000}; }

// At once: what was launched before has run, see run.h.
inline void copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                    size_t rows, void*) {
  for (size_t i = 0; i < rows; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch,
                static_cast<const char*>(from) + i * from_pitch, width);
}
inline void set_zero(void* to, size_t bytes, void*) { std::memset(to, 0, bytes); }

// Those of an H200, up to the largest cluster.
template <class... Parameters>
int64_t clusters_at_once(void (*)(Parameters...), const LaunchShape& shape) {
  const int blocks = shape.cluster;
  if (blocks > emulate::largest_cluster) return 0;
  return blocks > 8 ? 7 : blocks > 4 ? 15 : blocks > 2 ? 30 : blocks > 1 ? 66 : 132;
}

// Queues the launch; emulate::synchronize() runs it. The stream is not used: there is one.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, void*,
            Arguments&&... arguments) {
  const auto require = [&](bool condition, const char* message) {
    if (!condition)
      throw std::runtime_error(std::string("fastrnn: launch of ") + shape.name + ": " + message);
  };
  require(shape.threads > 0 && shape.threads <= 1024 && shape.threads % 32 == 0,
          "threads must be a multiple of 32 up to 1024");
  require(shape.blocks > 0, "there must be blocks");
  require(shape.shared <= emulate::kMaxShared, "too much shared memory");
  require(shape.cluster == 0 || shape.blocks % shape.cluster == 0, "clusters must be whole");
  std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  auto grid = std::make_unique<emulate::Grid>(
      emulate::Grid{shape, [kernel, values] { std::apply(kernel, values); }});
  emulate::launched.insert(shape.name);
  emulate::machine().push(std::move(grid));
}

}  // namespace fastrnn::cuda
