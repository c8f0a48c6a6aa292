// What a launch is made of while it runs: grid, blocks, warps and threads, which are
// fibers, and how a thread waits for others. machine.h lets them run.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace fastrnn::cuda::emulate {

using Where = std::source_location;

// Storage that no thread has written reads as NaN in every floating type.
inline constexpr int kPoison = 0xff;
inline constexpr size_t kMaxShared = 227 << 10;  // of a block, Hopper's

struct Block;
struct Grid;

inline std::string text(Where where) {
  const char* name = std::strrchr(where.file_name(), '/');
  return std::string(name != nullptr ? name + 1 : where.file_name()) + ":" +
         std::to_string(where.line());
}

// What a thread of a kernel does wrong; becomes the exception's message.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Thread : Fiber {
  Block* block;
  int index;
  const char* at = nullptr;  // the name in which it waits
  Where where;
  bool (*ready)(const Thread&) = nullptr;  // whether its wait for something else than its warp or
                                           // its block is over
  const void* waits_for = nullptr;         // what `ready` looks at
  uint32_t until = 0;

  struct Copy {
    void* to;
    const void* from;  // or null: zeros
    unsigned char bytes[16];
    int group;
  };
  std::vector<Copy> copies;  // under way, the oldest first
  int group = 0;             // that the next copy belongs to
};

// Of threads that need not be a warp or a block.
struct NamedBarrier {
  int arrived = 0;
  uint32_t rounds = 0;

  void arrive(int count, const char* at, Where where);
};

struct Warp {
  uint32_t ready = ~0u;  // lanes that can run
  uint32_t ended = 0;
  int arrived = 0;  // lanes that wait in the collective
  const char* name = nullptr;
  Where where;
  void* operands[32];
};

struct Block {
  Grid& grid;
  int index;
  std::vector<Warp> warps;
  std::unique_ptr<Thread[]> threads;
  int size, alive;
  char* shared;
  bool next_may_start = false;
  int at_barrier = 0;
  Where barrier;
  NamedBarrier named[16];
  size_t late = 0;  // a warp that runs when nothing else can, if there is one of that number
  std::vector<Thread*> held;  // those that wait for something that others make true

  Block(Grid&, int index);
  ~Block() { ::operator delete(shared, std::align_val_t(128)); }
  Block(const Block&) = delete;
  bool holds(const void* address, size_t bytes) const;
};

struct Grid {
  LaunchShape shape;
  std::function<void()> kernel;
  std::vector<int> order = {};                      // of blocks
  size_t begun = 0;                                 // of them
  std::vector<std::unique_ptr<Block>> blocks = {};  // those that have begun and not ended
  int ended = 0, next_may_start = 0;                // blocks
  std::vector<Block*> present = {};                 // by index: those that have begun and not ended
  std::vector<NamedBarrier> clusters = {};
  Grid* previous = nullptr;  // that previous_grid_wait waits for
  Grid* next = nullptr;      // that will overlap with this and has not begun
  bool alone = false;        // it will not begin before this has ended
};

inline Block::Block(Grid& grid, int index)
    : grid(grid),
      index(index),
      warps(static_cast<size_t>(grid.shape.threads / 32)),
      threads(new Thread[static_cast<size_t>(grid.shape.threads)]),
      size(grid.shape.threads),
      alive(size) {
  // Of the exact size, so that the address sanitizer sees an access beyond.
  shared = static_cast<char*>(::operator new(grid.shape.shared, std::align_val_t(128)));
  std::memset(shared, kPoison, grid.shape.shared);
}

inline bool Block::holds(const void* address, size_t bytes) const {
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(shared);
  return bytes <= grid.shape.shared && offset <= grid.shape.shared - bytes;
}

inline Thread& self() { return *static_cast<Thread*>(Fiber::running); }

// Suspends the thread; whoever lets it go on marks its lane as ready.
inline void wait(const char* at, Where where) {
  Thread& me = self();
  me.at = at;
  me.where = where;
  me.suspend();
  me.at = nullptr;
}
// Suspends the thread until `ready`, which other threads or launches make true of it.
inline void wait_until(bool (*ready)(const Thread&), const char* at, Where where) {
  Thread& me = self();
  if (ready(me)) return;
  me.ready = ready;
  me.block->held.push_back(&me);
  wait(at, where);
}

inline void NamedBarrier::arrive(int count, const char* at, Where where) {
  Thread& me = self();
  if (++arrived == count) {
    arrived = 0;
    ++rounds;
    return;
  }
  me.waits_for = this;
  me.until = rounds;
  wait_until(
      [](const Thread& t) {
        return static_cast<const NamedBarrier*>(t.waits_for)->rounds != t.until;
      },
      at, where);
}

// All lanes of the warp bring an operand; the last to come calls `body(operands)` for all.
template <class Operand, class Body>
void collective(const char* name, Where where, Operand& operand, const Body& body) {
  Thread& me = self();
  Warp& warp = me.block->warps[static_cast<size_t>(me.index / 32)];
  if (warp.ended != 0) throw Fault("other lanes of the warp have ended");
  if (warp.arrived == 0) {
    warp.name = name;
    warp.where = where;
  } else if (warp.name != name || warp.where.line() != where.line() ||
             warp.where.column() != where.column()) {
    throw Fault("the warp diverges: other lanes are at " + std::string(warp.name) + " (" +
                text(warp.where) + ")");
  }
  warp.operands[me.index % 32] = &operand;
  if (++warp.arrived < 32) return wait(name, where);
  warp.arrived = 0;
  Operand* operands[32];
  for (int l = 0; l < 32; ++l) operands[l] = static_cast<Operand*>(warp.operands[l]);
  body(operands);
  warp.ready = ~(1u << me.index % 32);
}

}  // namespace fastrnn::cuda::emulate
