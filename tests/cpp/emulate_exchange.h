// The names of exchange.cuh on the host. What a block sends comes late and in any order, and what
// lies where it will come is NaN meanwhile, so that whoever still reads there shows it.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "emulate.h"

namespace fastrnn::cuda {

struct Remote {
  emulate::Grid* grid = nullptr;
  int block = 0;
  size_t offset = 0;
};
inline Remote operator+(Remote r, size_t bytes) { return {r.grid, r.block, r.offset + bytes}; }

namespace emulate {

inline int cluster_size() { return self().block->grid.shape.cluster; }
// The block, if it has begun and not ended.
inline Block& present(const Remote& to, const char* what) {
  Block* const block = to.grid->present[static_cast<size_t>(to.block)];
  if (block == nullptr)
    throw Fault(std::string(what) + ": block " + std::to_string(to.block) +
                " has not begun, or has ended");
  return *block;
}

// In place of the hardware's 64 bits: bytes and arrivals that are missing in this round.
struct Arrivals {
  int32_t bytes;
  uint16_t missing, round;
};
static_assert(sizeof(Arrivals) == 8);

inline Arrivals& arrivals_at(void* place) { return *static_cast<Arrivals*>(place); }
inline void end_round(Arrivals& a) {
  if (a.missing != 0 || a.bytes != 0) return;
  a.missing = 1;
  ++a.round;
}

}  // namespace emulate

inline void cluster_barrier(Where where = Where::current()) {
  emulate::Block& block = *emulate::self().block;
  emulate::NamedBarrier& all =
      block.grid.clusters[static_cast<size_t>(block.index / block.grid.shape.cluster)];
  all.arrive(block.size * block.grid.shape.cluster, "cluster_barrier", where);
}

inline Remote remote(const void* shared, int rank) {
  emulate::Block& block = *emulate::self().block;
  if (rank < 0 || rank >= emulate::cluster_size()) throw Fault("remote: no block of this rank");
  emulate::check_shared(shared, 1, "remote");
  const int first = block.index - block.index % emulate::cluster_size();
  return {&block.grid, first + rank,
          static_cast<size_t>(static_cast<const char*>(shared) - block.shared)};
}

inline void arrivals_begin(uint64_t* arrivals) {
  emulate::check_shared(arrivals, 8, "arrivals_begin");
  emulate::arrivals_at(arrivals) = {0, 1, 0};
}
inline void arrivals_expect(uint64_t* arrivals, uint32_t bytes) {
  emulate::Arrivals& a = emulate::arrivals_at(arrivals);
  if (a.missing != 1) throw Fault("arrivals_expect: twice in a round");
  a.bytes += static_cast<int32_t>(bytes);
  a.missing = 0;
  emulate::end_round(a);
}
inline void arrivals_wait(uint64_t* arrivals, uint32_t odd, Where where = Where::current()) {
  emulate::check_shared(arrivals, 8, "arrivals_wait");
  emulate::Thread& me = emulate::self();
  me.waits_for = arrivals;
  me.until = odd;
  emulate::wait_until(
      [](const emulate::Thread& t) {
        return emulate::arrivals_at(const_cast<void*>(t.waits_for)).round % 2 != t.until;
      },
      "arrivals_wait", where);
}

inline void store_remote(Remote to, Piece piece, Remote arrivals) {
  if (to.block != arrivals.block) throw Fault("store_remote: data and count in different blocks");
  if (to.offset % 16 != 0) throw Fault("store_remote: address not aligned to 16 bytes");
  emulate::Block& block = emulate::present(to, "store_remote");
  if (!block.holds(block.shared + to.offset, 16))
    throw Fault("store_remote: address outside of the block's shared memory");
  std::memset(block.shared + to.offset, emulate::kPoison, 16);
  emulate::machine().send([=] {
    char* const shared = emulate::present(to, "store_remote, on its way").shared;
    std::memcpy(shared + to.offset, &piece, 16);
    emulate::Arrivals& a = emulate::arrivals_at(shared + arrivals.offset);
    a.bytes -= 16;
    emulate::end_round(a);
  });
}

// Pieces for one address come in the order in which they were published.
inline void publish(void* global, Piece piece) {
  emulate::check_aligned(global, 16, "publish");
  emulate::machine().send([=] { std::memcpy(global, &piece, 16); }, global);
}
inline Piece peek(const void* global) {
  emulate::check_aligned(global, 16, "peek");
  Piece piece;
  std::memcpy(&piece, global, 16);
  return piece;
}
inline void await(Piece& piece, const void* global, uint32_t bit, Where where = Where::current()) {
  if ((piece.x[0] & 1) == bit) return;
  emulate::Thread& me = emulate::self();
  me.waits_for = global;
  me.until = bit;
  emulate::wait_until(
      [](const emulate::Thread& t) { return (peek(t.waits_for).x[0] & 1) == t.until; }, "await",
      where);
  piece = peek(global);
}

inline void warps_barrier(int id, int count, Where where = Where::current()) {
  if (id < 1 || id > 15 || count % 32 != 0) throw Fault("warps_barrier: no such barrier");
  emulate::self().block->named[static_cast<size_t>(id)].arrive(count, "warps_barrier", where);
}
inline uint32_t shuffle_xor(uint32_t x, int mask, Where where = Where::current()) {
  struct Operand {
    uint32_t x;
    int mask;
    uint32_t result;
  } mine{x, mask, 0};
  emulate::collective("shuffle_xor", where, mine, [](Operand** all) {
    for (int l = 0; l < 32; ++l) all[l]->result = all[(l ^ all[l]->mask) % 32]->x;
  });
  return mine.result;
}

}  // namespace fastrnn::cuda
