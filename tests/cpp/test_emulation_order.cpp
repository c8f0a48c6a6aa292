// The host emulation of device.cuh: who runs when, and that what waits for nobody comes too early.
#define FASTRNN_EMULATED
#include "cuda/device.cuh"

#include <cmath>

#include "check.h"

using namespace fastrnn::cuda;

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  launch(kernel, shape, nullptr, arguments...);
  emulate::synchronize();
}

constexpr int kPipelined = 64;  // threads
// Adds up the tiles of `in`, [tiles][kPipelined * 4], which go through three stages in shared
// memory. Each thread reads what its neighbour copied. Places from `count` on do not exist.
FASTRNN_KERNEL void pipeline_kernel(const float* in, float* out, int tiles, int count) {
  constexpr int kStages = 3;
  auto* shared = reinterpret_cast<float*>(shared_memory());
  const auto copy = [&](int tile) {
    const int at = (tile * kPipelined + thread()) * 4;
    if (tile < tiles)
      copy_async(shared + (tile % kStages * kPipelined + thread()) * 4,
                 at < count ? in + at : nullptr, at < count);
    copies_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) copy(tile);
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    copies_wait<kStages - 2>();
    block_barrier();
    const int other = (thread() + 33) % kPipelined;
    for (int i = 0; i < 4; ++i) sum += shared[(tile % kStages * kPipelined + other) * 4 + i];
    copy(tile + kStages - 1);
  }
  out[thread()] = sum;
}
void pipeline() {
  constexpr int kThreads = kPipelined, kTiles = 5, kCount = kTiles * kThreads * 4 - 40;
  const auto in = uniform_vector<float>(kCount);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    emulate::seed(seed);
    std::vector<float> out(kThreads);
    run(pipeline_kernel, {.blocks = 1, .threads = kThreads, .shared = 3 * kThreads * 16}, in.data(),
        out.data(), kTiles, kCount);
    for (int i = 0; i < kThreads; ++i) {
      double sum = 0;
      for (int tile = 0; tile < kTiles; ++tile)
        for (int j = 0; j < 4; ++j) {
          const int at = (tile * kThreads + (i + 33) % kThreads) * 4 + j;
          sum += at < kCount ? in[at] : 0;
        }
      CHECK(std::abs(out[i] - sum) < 1e-5, "thread %d: %g, not %g", i, out[i], sum);
    }
  }
}

// What hardware forbids to forget must matter: some order shows it.
FASTRNN_KERNEL void neighbour_kernel(int* out, int distance, bool barrier) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  shared[thread()] = thread();
  if (barrier) block_barrier();
  out[thread()] = shared[thread() ^ distance];
}
void orders() {
  for (const bool barrier : {true, false})
    for (const int distance : {1, 32}) {  // in the warp, and beyond
      int wrong = 0;
      for (uint64_t seed = 0; seed < 20; ++seed) {
        emulate::seed(seed);
        std::vector<int> out(64);
        run(neighbour_kernel, {.blocks = 1, .threads = 64, .shared = 256}, out.data(), distance,
            barrier);
        for (int i = 0; i < 64; ++i) wrong += out[i] != (i ^ distance);
      }
      CHECK((wrong == 0) == barrier, "distance %d, barrier %d: %d", distance, barrier, wrong);
    }
}

FASTRNN_KERNEL void poison_kernel(float* floats, double* doubles, Half* halves) {
  floats[thread()] = reinterpret_cast<float*>(shared_memory())[thread()];
  doubles[thread()] = reinterpret_cast<double*>(shared_memory())[thread()];
  halves[thread()] = reinterpret_cast<Half*>(shared_memory())[thread()];
}
// Without a wait for its group, or without the commit before that, a copy has not arrived.
FASTRNN_KERNEL void hasty_kernel(const float* in, float* out, bool commits, int waits) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  for (int i = 0; i < 4; ++i) shared[4 * thread() + i] = 1;
  copy_async(shared + 4 * thread(), in + 4 * thread(), true);
  if (commits) copies_commit();
  if (waits == 1) copies_wait<1>();
  if (waits == 2) copies_wait<0>();
  out[thread()] = shared[4 * thread() + 3];
}
void poison() {
  std::vector<float> floats(32), in(128, 2);
  std::vector<double> doubles(32);
  std::vector<Half> halves(32);
  run(poison_kernel, {.blocks = 1, .threads = 32, .shared = 256}, floats.data(), doubles.data(),
      halves.data());
  for (int i = 0; i < 32; ++i)
    CHECK(std::isnan(floats[i]) && std::isnan(doubles[i]) && std::isnan(to_float(halves[i])), "%d",
          i);
  for (const bool commits : {true, false})
    for (const int waits : {0, 1, 2}) {
      run(hasty_kernel, {.blocks = 1, .threads = 32, .shared = 512}, in.data(), floats.data(),
          commits, waits);
      CHECK(commits && waits == 2 ? floats[31] == 2 : std::isnan(floats[31]), "%d %d", commits,
            waits);
    }
#if defined(FASTRNN_ASAN)
  static bool sees[3];
  run(
      +[] {
        sees[0] = !__asan_address_is_poisoned(shared_memory() + 99);
        sees[1] = __asan_address_is_poisoned(shared_memory() + 100);
        sees[2] = __asan_address_is_poisoned(shared_memory() - 1);
      },
      {.blocks = 1, .threads = 32, .shared = 100});
  CHECK(sees[0] && sees[1] && sees[2], "the ends of shared memory");
#endif
}

enum Start { kFirst, kAfterWait, kLast };  // where a step lets the next begin
enum Read { kBehindWait, kLastEarly, kSecondLastEarly };

constexpr int kChained = 32;  // threads
// Step t: values[t] = values[t - 1] + values[t - 2], per thread.
FASTRNN_KERNEL void chain_kernel(int64_t* values, int blocks, int t, Start start, Read read) {
  const int all = blocks * kChained, i = block() * kChained + thread();
  // The neighbour block's, so that blocks matter.
  const int other = (i + kChained) % all;
  const int64_t *last = values + (t - 1) * all + other, *second = last - all;
  int64_t early = 0;
  if (start == kFirst) next_grid_start();
  if (read == kLastEarly) early = *last;
  if (read == kSecondLastEarly) early = *second;
  previous_grid_wait();
  if (start == kAfterWait) next_grid_start();
  values[t * all + i] =
      (read == kLastEarly ? early : *last) + (read == kSecondLastEarly ? early : *second);
  if (start == kLast) next_grid_start();
}
// Whether a chain of steps computes what it should.
bool chain(Start start, Read read, bool overlaps, int blocks) {
  constexpr int kSteps = 12;
  const int all = blocks * kChained;
  std::vector<int64_t> values(kSteps * all, -1);
  for (int i = 0; i < 2 * all; ++i) values[i] = 1;
  for (int t = 2; t < kSteps; ++t)
    launch(chain_kernel, {.blocks = blocks, .threads = kChained, .overlaps = overlaps}, nullptr,
           values.data(), blocks, t, start, read);
  emulate::synchronize();
  for (int t = 2; t < kSteps; ++t)
    for (int i = 0; i < all; ++i)
      if (values[t * all + i] != values[(t - 1) * all] + values[(t - 2) * all]) return false;
  return values[all * kSteps - 1] == 144;
}
void chains() {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    emulate::seed(seed);
    for (const Start start : {kFirst, kAfterWait, kLast}) {
      for (const Read read : {kBehindWait, kLastEarly, kSecondLastEarly})
        CHECK(chain(start, read, false, 3), "without overlap, %d %d", start, read);
      CHECK(chain(start, kBehindWait, true, 3), "reads behind the wait, start %d", start);
      CHECK(!chain(start, kLastEarly, true, 3), "a read before the wait is right, %d", start);
    }
    // A launch that begins behind the wait of the one before finds the one before that ended.
    CHECK(!chain(kFirst, kSecondLastEarly, true, 3), "two steps under way, nothing stale");
    CHECK(chain(kAfterWait, kSecondLastEarly, true, 3), "stale though the wait was over");
  }
  // Launches of too many threads to hold two at a time do not overlap.
  const int many = emulate::kMaxPaired / 64 + 1;
  CHECK(chain(kFirst, kBehindWait, true, many) && chain(kFirst, kLastEarly, true, many), "large");
}

// Blocks that let the next launch begin before they write; block 0 only afterwards if `late`.
FASTRNN_KERNEL void writing_kernel(int* value, bool late) {
  if (!late || block() != 0) next_grid_start();
  if (block() == 0 && thread() == 0) *value = 1;
  if (late && block() == 0) next_grid_start();
}
FASTRNN_KERNEL void following_kernel(const int* value, int* out) {
  out[0] = *value;
  previous_grid_wait();
  out[1] = *value;
}
void followers() {
  for (uint64_t seed = 0; seed < 4; ++seed)
    for (const bool late : {false, true})
      for (const bool overlaps : {false, true}) {
        emulate::seed(seed);
        int value = 0, out[2];
        launch(writing_kernel, {.blocks = 3, .threads = 64}, nullptr, &value, late);
        run(following_kernel, {.blocks = 1, .threads = 32, .overlaps = overlaps}, &value, out);
        CHECK(out[0] == !(overlaps && !late) && out[1] == 1, "%d %d: %d", late, overlaps, out[0]);
      }
}

int main() {
  pipeline();
  orders();
  poison();
  chains();
  followers();
  return report("test_emulation_order");
}
