// A GPU made of fibers: runs queued launches, one fiber per thread, on the thread that asks for it.
//
// The order is one that hardware may choose and that mistakes do not survive for long. Blocks run
// one at a time in random order, others only while all wait for what others make true; warps and
// lanes run from random ends, each as far as it gets, while one warp of a block may lag behind.
// What a block sends to others is under way for a random time. A launch that `overlaps` begins as
// soon as it may and runs ahead of those before it, three launches at most being under way. All of
// it follows from the seed.
//
// A kernel that breaks a rule ends the launch with an exception that names kernel, block, thread
// and place; what is queued is dropped, and the next launch starts afresh.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grid.h"

namespace fastrnn::cuda::emulate {

inline constexpr int kMaxLive = 3;          // launches under way at a time
inline constexpr int kMaxPaired = 1 << 15;  // threads of two launches that shall overlap

class Machine {
 public:
  uint64_t random = 1;

  void push(std::unique_ptr<Grid> grid) { queue.push_back(std::move(grid)); }

  // Lets something come later, and perhaps some of what is under way now. What goes to one place,
  // if it is named, comes in order.
  void send(std::function<void()> come, const void* place = nullptr) {
    under_way.push_back({std::move(come), place});
    while (!under_way.empty() && draw(3) == 0) come_in();
  }

  // Runs all that is queued. Throws what went wrong, as one std::runtime_error.
  void run() {
    try {
      while (!queue.empty()) {
        while (live > 0 && over(*queue.front())) end_first();
        while (live < queue.size() && may_begin()) begin();
        if (queue.empty()) break;
        if (!advance() && !come_in() && !run_late() && !let_go()) throw Fault(stuck());
      }
    } catch (...) {
      queue.clear();
      under_way.clear();
      live = 0;
      throw;
    }
  }

 private:
  std::deque<std::unique_ptr<Grid>> queue;  // the first `live` of them have begun
  size_t live = 0;
  std::string failure;
  struct Sent {
    std::function<void()> come;
    const void* place;
  };
  std::deque<Sent> under_way;

  uint32_t draw(size_t bound) {  // xorshift64*
    random ^= random >> 12;
    random ^= random << 25;
    random ^= random >> 27;
    return static_cast<uint32_t>((random * 0x2545f4914f6cdd1du >> 32) % bound);
  }

  static bool over(const Grid& grid) { return grid.ended == grid.shape.blocks; }
  static int threads(const Grid& grid) { return grid.shape.blocks * grid.shape.threads; }

  bool may_begin() const {
    if (live == 0) return true;
    const Grid& last = *queue[live - 1];
    return queue[live]->shape.overlaps && live < kMaxLive && !last.alone &&
           last.next_may_start == last.shape.blocks;
  }

  void begin() {
    Grid& grid = *queue[live];
    if (live > 0) {
      grid.previous = queue[live - 1].get();
      grid.previous->next = nullptr;
    }
    if (++live < queue.size() && queue[live]->shape.overlaps) {
      grid.next = queue[live].get();
      grid.alone = threads(grid) + threads(*grid.next) > kMaxPaired;
    }
    const size_t blocks = static_cast<size_t>(grid.shape.blocks);
    grid.present.resize(blocks);
    if (grid.shape.cluster > 0)
      grid.clusters.resize(blocks / static_cast<size_t>(grid.shape.cluster));
    grid.order.resize(blocks);
    std::iota(grid.order.begin(), grid.order.end(), 0);
    for (size_t i = grid.order.size(); i > 1; --i)
      std::swap(grid.order[i - 1], grid.order[draw(i)]);
  }

  // Lets one thing come, if any is under way.
  bool come_in() {
    if (under_way.empty()) return false;
    size_t which = draw(under_way.size());
    for (size_t i = 0; i < which; ++i)
      if (under_way[which].place != nullptr && under_way[i].place == under_way[which].place)
        which = i;
    const Sent sent = std::move(under_way[which]);
    under_way.erase(under_way.begin() + static_cast<std::ptrdiff_t>(which));
    sent.come();
    return true;
  }

  void end_first() {
    while (come_in()) {
    }
    if (live > 1) queue[1]->previous = nullptr;
    queue.pop_front();
    --live;
  }

  // The warp of a block that lags behind, or none: where blocks wait for each other in the kernel.
  size_t draw_late(const Block& block) {
    const LaunchShape& shape = block.grid.shape;
    return shape.cluster > 0 || shape.together ? draw(2 * block.warps.size()) : block.warps.size();
  }
  // Lets the warps that lag behind catch up as far as they get; others lag from then on.
  bool run_late() {
    bool any = false;
    for (size_t i = 0; i < live; ++i)
      for (const auto& block : queue[i]->blocks) {
        wake(*block);
        const size_t late = std::exchange(block->late, draw_late(*block));
        if (late >= block->warps.size() || !run(*block, late)) continue;
        any = true;
        settle(*block);
      }
    return any;
  }

  // Lets the youngest launch that can do something do it.
  bool advance() {
    for (size_t i = live; i-- > 0;)
      if (advance(*queue[i])) return true;
    return false;
  }
  bool advance(Grid& grid) {
    bool any = false;
    for (const auto& block : grid.blocks) any |= run(*block);
    std::erase_if(grid.blocks, [](const auto& block) { return block->alive == 0; });
    // Another block begins when none is left, or all wait for other launches.
    if (any || grid.begun == grid.order.size() ||
        !std::all_of(grid.blocks.begin(), grid.blocks.end(),
                     [](const auto& block) { return !block->held.empty(); }))
      return any;
    begin_block(grid);
    return true;
  }

  // Ends the pauses in next_grid_start of the oldest launch that has some.
  bool let_go() {
    for (size_t i = 0; i < live; ++i)
      if (queue[i]->next != nullptr && !queue[i]->alone) return queue[i]->alone = true;
    return false;
  }

  void begin_block(Grid& grid) {
    grid.blocks.push_back(std::make_unique<Block>(grid, grid.order[grid.begun++]));
    Block& block = *grid.blocks.back();
    grid.present[static_cast<size_t>(block.index)] = &block;
    block.late = draw_late(block);
    for (int i = 0; i < block.size; ++i) {
      block.threads[i].block = &block;
      block.threads[i].index = i;
      block.threads[i].start(body);
    }
  }

  static void body(Fiber& fiber);

  // Runs the block's threads until none can; whether one could.
  bool run(Block& block) {
    bool any = false, more = true;
    while (more) {
      more = false;
      const size_t count = block.warps.size(), first = draw(count);
      const bool upwards = draw(2) != 0;
      for (size_t k = 0; k < count; ++k) {
        const size_t w = upwards ? (first + k) % count : (first + count - k) % count;
        if (w != block.late) more = run(block, w) || more;
      }
      more = wake(block) || more;
      any |= more;
    }
    if (any) settle(block);
    return any;
  }
  // Counts a block that has ended.
  static void settle(Block& block) {
    if (block.alive > 0) return;
    if (!block.next_may_start) ++block.grid.next_may_start;
    ++block.grid.ended;
    block.grid.present[static_cast<size_t>(block.index)] = nullptr;
  }
  static bool wake(Block& block) {
    return std::erase_if(block.held, [&](Thread* thread) {
             if (!thread->ready(*thread)) return false;
             block.warps[static_cast<size_t>(thread->index / 32)].ready |= 1u << thread->index % 32;
             return true;
           }) > 0;
  }

  bool run(Block& block, size_t w) {
    Warp& warp = block.warps[w];
    if (warp.ready == 0) return false;
    const bool upwards = draw(2) != 0;
    while (warp.ready != 0) {
      const int lane = upwards ? __builtin_ctz(warp.ready) : 31 - __builtin_clz(warp.ready);
      warp.ready &= ~(1u << lane);
      Thread& thread = block.threads[w * 32 + static_cast<size_t>(lane)];
      thread.resume();
      if (!failure.empty()) throw Fault(std::exchange(failure, {}));
    }
    return true;
  }

  // What the oldest launch waits for.
  std::string stuck() const {
    const Grid& grid = *queue.front();
    std::string message = std::string("fastrnn: kernel ") + grid.shape.name + " is stuck:";
    size_t lines = 0;
    for (const auto& block : grid.blocks) {
      if (++lines > 4) continue;
      message += "\n  block " + std::to_string(block->index);
      for (int i = 0, first = 0; i < block->size; ++i) {
        const Thread& thread = block->threads[i];
        if (i + 1 < block->size && same(thread, block->threads[i + 1])) continue;
        message +=
            (first == 0 ? ": threads " : ", threads ") + std::to_string(first) + " to " +
            std::to_string(i) +
            (thread.ended ? std::string(" have ended")
                          : std::string(" at ") + thread.at + " (" + text(thread.where) + ")");
        first = i + 1;
      }
    }
    if (lines > 4) message += "\n  and " + std::to_string(lines - 4) + " more blocks";
    return message;
  }
  static bool same(const Thread& a, const Thread& b) {
    return a.ended == b.ended && (a.ended || (a.at == b.at && a.where.line() == b.where.line()));
  }

  friend Machine& machine();
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

// What a fiber runs: the kernel, and what its end means to those that wait for it.
inline void Machine::body(Fiber& fiber) {
  Thread& me = static_cast<Thread&>(fiber);
  Block& block = *me.block;
  try {
    block.grid.kernel();
    Warp& warp = block.warps[static_cast<size_t>(me.index / 32)];
    if (warp.arrived != 0)
      throw Fault("ends while other lanes of the warp are at " + std::string(warp.name) + " (" +
                  text(warp.where) + ")");
    if (block.at_barrier != 0)
      throw Fault("ends while others are at block_barrier (" + text(block.barrier) + ")");
    warp.ended |= 1u << me.index % 32;
    --block.alive;
  } catch (const std::exception& error) {
    machine().failure = std::string("fastrnn: kernel ") + block.grid.shape.name + ", block " +
                        std::to_string(block.index) + ", thread " + std::to_string(me.index) +
                        ": " + error.what();
  }
}

// Runs all launches so far. A launch itself only queues. Throws the first fault.
inline void synchronize() { machine().run(); }

// Chooses the order in which threads and blocks run from now on.
inline void seed(uint64_t value) { machine().random = value * 0x9e3779b97f4a7c15u | 1; }

}  // namespace fastrnn::cuda::emulate
