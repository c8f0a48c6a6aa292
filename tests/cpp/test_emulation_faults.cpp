// The host emulation of device.cuh: what a kernel does wrong is reported, and the next launch runs
// as if nothing had been.
#define FASTRNN_EMULATED
#include "cuda/device.cuh"

#include <stdexcept>
#include <string>

#include "check.h"

using namespace fastrnn::cuda;

// Of 64 threads: each has word lane() of the upper half of shared memory.
FASTRNN_KERNEL void sound_kernel(uint32_t* out) {
  auto* shared = reinterpret_cast<uint32_t*>(shared_memory());
  shared[thread()] = static_cast<uint32_t>(thread());
  block_barrier();
  out[thread()] = load_fragment_a<Half>(shared + lane() % 16 * 4).x[1];
}

// The message of the fault, or "" if there was none.
std::string message_of(void (*kernel)(), const LaunchShape& shape) {
  try {
    launch(kernel, shape, nullptr);
    emulate::synchronize();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// Whether the kernel is always stopped with one of the two messages, and another launch then runs.
void faulty(void (*kernel)(), const LaunchShape& shape, const char* expected,
            const char* other = nullptr, emulate::Where where = emulate::Where::current()) {
  const unsigned line = where.line();
  bool seen[2] = {};
  for (uint64_t seed = 0; seed < 10; ++seed) {
    emulate::seed(seed);
    const std::string message = message_of(kernel, shape);
    const bool first = message.find(expected) != std::string::npos;
    const bool second = other != nullptr && message.find(other) != std::string::npos;
    CHECK(first || second, "line %u: %s", line, message.c_str());
    seen[0] |= first;
    seen[1] |= second;

    uint32_t out[64] = {};
    launch(sound_kernel, {.blocks = 2, .threads = 64, .shared = 256}, nullptr, out);
    emulate::synchronize();
    CHECK(out[0] == 32 && out[63] == 63, "line %u: %u", line, out[0]);
  }
  CHECK(seen[0], "line %u: never: %s", line, expected);
  CHECK(other == nullptr || seen[1], "line %u: never: %s", line, other);
}

constexpr LaunchShape kOne{.blocks = 1, .threads = 64, .shared = 256, .name = "one"};
constexpr LaunchShape kMany{.blocks = 1 << 14, .threads = 1024, .shared = 16, .name = "many"};
constexpr LaunchShape kAll{.blocks = 3, .threads = 32, .name = "all"};

// Initialised, aligned to 16 bytes.
alignas(16) float global[512];
float* shared() { return reinterpret_cast<float*>(shared_memory()); }
// All lanes of a warp are needed here.
void meet() { load_fragment_a<Half>(shared_memory()); }

void barriers() {
  faulty(
      [] {
        if (thread() != 63) block_barrier();
      },
      kOne, "ends while others are at block_barrier (test_emulation_faults.cpp:",
      "other threads of the block have ended");
  faulty(
      [] {
        if (thread() < 32)
          block_barrier();
        else
          block_barrier();
      },
      kOne, "the block diverges: other threads are at block_barrier (test_emulation_faults.cpp:");
  // The thread that is missed waits elsewhere: nobody can go on.
  faulty(
      [] {
        if (thread() == 37) meet();
        block_barrier();
      },
      kOne, "kernel one is stuck:\n  block 0: threads 0 to 36 at block_barrier (");
  faulty(
      [] {
        if (thread() == 37) meet();
        block_barrier();
      },
      kOne, ", threads 37 to 37 at load_fragment_a (");
  // Seen in the first block, not when all of them wait.
  faulty(
      [] {
        if (thread() == 0) meet();
        block_barrier();
      },
      kMany, "kernel many is stuck:\n  block ");
}

void collectives() {
  faulty(
      [] {
        if (lane() != 31) meet();
      },
      kOne, "ends while other lanes of the warp are at load_fragment_a (test_emulation_faults.cpp:",
      "other lanes of the warp have ended");
  faulty(
      [] {
        if (lane() < 16)
          load_fragment_b<Half>(shared());
        else
          meet();
      },
      kOne, "the warp diverges: other lanes are at load_fragment_a",
      "the warp diverges: other lanes are at load_fragment_b");
  faulty(
      [] {
        float d[4] = {};
        if (lane() % 2 == 0)
          mma(d, FragmentA<Half>{}, FragmentB<Half>{});
        else
          mma(d, FragmentA<Half>{}, FragmentB<Half>{});
      },
      kOne, "the warp diverges: other lanes are at mma");
  faulty(
      [] {
        if (lane() == 3) block_barrier();
        meet();
      },
      kOne, "is stuck:\n  block 0: threads 0 to 2 at load_fragment_a");
}

void addresses() {
  const auto ldmatrix = "load_fragment_a: address not aligned to 16 bytes";
  faulty([] { load_fragment_a<Half>(shared() + (lane() == 9 ? 2 : 0)); }, kOne, ldmatrix);
  faulty([] { load_fragment_b<Tf32>(shared() + (lane() == 9 ? 1 : 0)); }, kOne, "not aligned");
  faulty(
      [] {
        FragmentB<Tf32> b[2];
        load_fragment_b(b, shared() + (lane() == 9 ? 3 : 0));
      },
      kOne, "not aligned");
  faulty([] { load_fragment_a<Half>(shared() + (lane() == 31 ? 64 : 0)); }, kOne,
         "load_fragment_a: address outside of the block's shared memory");
  faulty([] { load_fragment_b<Half>(global); }, kOne, "load_fragment_b: address outside");

  faulty([] { copy_async(shared() + 1, global, true); }, kOne,
         "copy_async to: address not aligned");
  faulty([] { copy_async(shared(), global + 2, true); }, kOne, "copy_async from: address not al");
  faulty([] { copy_async(shared() + 64, global, true); }, kOne, "copy_async to: address outside");
  faulty([] { copy_async(global, global, true); }, kOne, "copy_async to: address outside");
  faulty([] { load16(global + 1); }, kOne, "load: address not aligned to 16 bytes");
  faulty([] { load<2>(global + 1); }, kOne, "load: address not aligned to 8 bytes");
  faulty([] { load_uncached<4>(global + 2); }, kOne, "load: address not aligned to 16 bytes");
  faulty([] { store(global + 2, Pack<float, 4>{}); }, kOne, "store: address not aligned");
}

void copies() {
  faulty(
      [] {
        float* mine = shared() + 4 * (thread() % 16);
        if (thread() >= 16) return;
        copy_async(mine, global + 4 * thread(), true);
        copies_commit();
        if (thread() == 5) mine[1] = 1;
        copies_wait<0>();
      },
      kOne, "thread 5: copies_wait: the destination of a copy was written meanwhile");
  faulty(
      [] {
        if (thread() >= 16) return;
        copy_async(shared() + 4 * thread(), global + 4 * thread(), true);
        copies_commit();
        if (thread() == 5) ++global[21];
        copies_wait<0>();
      },
      kOne, "thread 5: copies_wait: the source of a copy was written meanwhile");
}

void launches() {
  uint32_t out[64];
  const auto refused = [&](LaunchShape shape, const char* expected) {
    shape.name = "sound";
    try {
      launch(sound_kernel, shape, nullptr, out);
    } catch (const std::runtime_error& error) {
      const std::string message = error.what();
      CHECK(message.find("launch of sound: ") != std::string::npos, "%s", error.what());
      CHECK(message.find(expected) != std::string::npos, "%s", error.what());
      return;
    }
    CHECK(false, "not refused: %s", expected);
  };
  refused({.blocks = 1, .threads = 48}, "threads");
  refused({.blocks = 1, .threads = 0}, "threads");
  refused({.blocks = 1, .threads = 1056}, "threads");
  refused({.blocks = 0, .threads = 32}, "blocks");
  refused({.blocks = 1, .threads = 32, .shared = (227 << 10) + 1}, "shared memory");
  emulate::synchronize();  // nothing was queued

  // A fault names its place, and what was queued behind it is dropped.
  faulty(
      [] {
        if (block() == 2 && thread() == 5) throw std::out_of_range("too far");
      },
      kAll, "fastrnn: kernel all, block 2, thread 5: too far");
  static int after;
  launch(+[] { throw std::runtime_error("first"); }, kOne, nullptr);
  launch(+[] { ++after; }, kOne, nullptr);
  try {
    emulate::synchronize();
    CHECK(false, "no fault");
  } catch (const std::runtime_error&) {
  }
  emulate::synchronize();
  CHECK(after == 0, "ran behind a fault");
  // The fault of a launch that runs ahead of another.
  launch(+[] { next_grid_start(); }, kOne, nullptr);
  launch(
      +[] { load16(global + 1); }, {.blocks = 1, .threads = 32, .overlaps = true, .name = "two"},
      nullptr);
  try {
    emulate::synchronize();
    CHECK(false, "no fault");
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()).find("kernel two") != std::string::npos, "%s", error.what());
  }
}

int main() {
  barriers();
  collectives();
  addresses();
  copies();
  launches();
  return report("test_emulation_faults");
}
