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

// Adds up the tiles of `in`, [tiles][threads * 4], which go through three stages in shared memory.
// Each thread reads what its neighbour copied. Places from `count` on do not exist.
FASTRNN_KERNEL void pipeline_kernel(const float* in, float* out, int tiles, int count) {
  constexpr int kStages = 3;
  auto* shared = reinterpret_cast<float*>(shared_memory());
  const auto copy = [&](int tile) {
    const int at = (tile * threads() + thread()) * 4;
    if (tile < tiles)
      copy_async(shared + (tile % kStages * threads() + thread()) * 4,
                 at < count ? in + at : nullptr, at < count);
    copies_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) copy(tile);
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    copies_wait<kStages - 2>();
    block_barrier();
    const int other = (thread() + 33) % threads();
    for (int i = 0; i < 4; ++i) sum += shared[(tile % kStages * threads() + other) * 4 + i];
    copy(tile + kStages - 1);
  }
  out[thread()] = sum;
}
void pipeline() {
  constexpr int kThreads = 64, kTiles = 5, kCount = kTiles * kThreads * 4 - 40;
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

// Each block writes into the next block of its cluster, then reads from the one after that.
FASTRNN_KERNEL void cluster_kernel(int* out) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  const int size = cluster_size(), rank = cluster_rank();
  cluster_barrier();  // all have begun
  map_shared(shared, (rank + 1) % size)[thread()] = 100 * block() + thread();
  cluster_arrive();
  int* mine = out + 2 * (block() * threads() + thread());
  cluster_wait();
  mine[0] = shared[thread()];
  mine[1] = map_shared(shared, (rank + 2) % size)[(thread() + 1) % threads()];
  cluster_barrier();  // nobody reads from here any more
}
void cluster() {
  constexpr int kThreads = 64, kBlocks = 12, kSize = 4;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    emulate::seed(seed);
    std::vector<int> out(2 * kBlocks * kThreads);
    run(cluster_kernel, {.blocks = kBlocks, .threads = kThreads, .shared = 256, .cluster = kSize},
        out.data());
    for (int i = 0; i < kBlocks * kThreads; ++i) {
      const int block = i / kThreads, thread = i % kThreads, first = block / kSize * kSize;
      const int before = first + (block + 3) % kSize, after = first + (block + 1) % kSize;
      CHECK(out[2 * i] == 100 * before + thread, "block %d thread %d", block, thread);
      CHECK(out[2 * i + 1] == 100 * after + (thread + 1) % kThreads, "block %d", block);
    }
  }
}

// `steps` times, each block adds its neighbour's value to its own: [2][blocks].
FASTRNN_KERNEL void grid_kernel(int64_t* values, unsigned* counter, int steps) {
  unsigned phase = 0;
  for (int step = 0; step < steps; ++step) {
    const int64_t* old = values + step % 2 * blocks();
    int64_t* next = values + (step + 1) % 2 * blocks();
    if (thread() == step % threads()) next[block()] = old[block()] + old[(block() + 1) % blocks()];
    grid_barrier(counter, blocks(), phase);
  }
}
void grid() {
  constexpr int kBlocks = 5, kSteps = 20;
  std::vector<int64_t> expected(2 * kBlocks);
  for (int i = 0; i < kBlocks; ++i) expected[i] = i * i;
  std::vector<int64_t> values = expected;
  for (int step = 0; step < kSteps; ++step)
    for (int i = 0; i < kBlocks; ++i)
      expected[(step + 1) % 2 * kBlocks + i] =
          expected[step % 2 * kBlocks + i] + expected[step % 2 * kBlocks + (i + 1) % kBlocks];
  unsigned counter = 0;
  run(grid_kernel, {.blocks = kBlocks, .threads = 32, .together = true}, values.data(), &counter,
      kSteps);
  CHECK(values == expected, "values after grid barriers");
  CHECK(counter == kBlocks * kSteps, "counter %u", counter);
}

// What hardware forbids to forget must matter: for each of these some order shows it.
FASTRNN_KERNEL void neighbour_kernel(int* out, bool in_warp, bool barrier) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  shared[thread()] = thread();
  if (barrier && in_warp) warp_barrier();
  if (barrier && !in_warp) block_barrier();
  out[thread()] = shared[thread() ^ (in_warp ? 1 : 32)];
}
FASTRNN_KERNEL void early_remote_kernel(int* out, bool barrier) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  if (barrier) cluster_barrier();
  if (thread() == 0) *map_shared(shared, 1 - cluster_rank()) = 7;
  cluster_barrier();
  if (thread() == 0) out[block()] = *shared;
}
// The barrier of a grid holds back a block of which one thread only has arrived.
FASTRNN_KERNEL void meeting_kernel(int* out, unsigned* counter, bool barrier) {
  unsigned phase = 0;
  if (barrier) out[block() * threads() + thread()] = 1;
  if (!barrier && thread() == 0) signal(counter), wait_for(counter, 2);
  if (!barrier) out[block() * threads() + thread()] = 1;
  if (barrier) grid_barrier(counter, blocks(), phase);
  const int seen = out[(1 - block()) * threads() + (thread() + 32) % threads()];
  out[(2 + block()) * threads() + thread()] = seen;
}
void orders() {
  for (const bool barrier : {true, false}) {
    int wrong[4] = {};
    for (uint64_t seed = 0; seed < 20; ++seed) {
      emulate::seed(seed);
      for (const bool in_warp : {true, false}) {
        std::vector<int> out(64);
        run(neighbour_kernel, {.blocks = 1, .threads = 64, .shared = 256}, out.data(), in_warp,
            barrier);
        for (int i = 0; i < 64; ++i) wrong[in_warp] += out[i] != (i ^ (in_warp ? 1 : 32));
      }
      int out[2];
      run(early_remote_kernel, {.blocks = 2, .threads = 32, .shared = 4, .cluster = 2}, out,
          barrier);
      wrong[2] += out[0] != 7 || out[1] != 7;
      unsigned counter = 0;
      std::vector<int> met(4 * 64);
      run(meeting_kernel, {.blocks = 2, .threads = 64, .together = true}, met.data(), &counter,
          barrier);
      for (int i = 128; i < 256; ++i) wrong[3] += met[i] != 1;
    }
    for (int i = 0; i < 4; ++i)
      CHECK((wrong[i] == 0) == barrier, "case %d with barrier %d: %d", i, barrier, wrong[i]);
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

// Step t: values[t] = values[t - 1] + values[t - 2], per thread.
FASTRNN_KERNEL void chain_kernel(int64_t* values, int t, Start start, Read read) {
  const int all = blocks() * threads(), i = block() * threads() + thread();
  // The neighbour block's, so that blocks matter.
  const int other = (i + threads()) % all;
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
  constexpr int kSteps = 12, kThreads = 32;
  const int all = blocks * kThreads;
  std::vector<int64_t> values(kSteps * all, -1);
  for (int i = 0; i < 2 * all; ++i) values[i] = 1;
  for (int t = 2; t < kSteps; ++t)
    launch(chain_kernel, {.blocks = blocks, .threads = kThreads, .overlaps = overlaps}, nullptr,
           values.data(), t, start, read);
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

// Blocks that let the next launch begin before they meet; block 0 only afterwards if `late`.
FASTRNN_KERNEL void meeting_before_kernel(int* value, unsigned* counter, bool late) {
  if (!late || block() != 0) next_grid_start();
  unsigned phase = 0;
  grid_barrier(counter, blocks(), phase);
  if (late && block() == 0) next_grid_start();
  if (block() == 0 && thread() == 0) *value = 1;
}
FASTRNN_KERNEL void following_kernel(const int* value, int* out) {
  out[0] = *value;
  previous_grid_wait();
  out[1] = *value;
}
void meetings() {
  for (uint64_t seed = 0; seed < 4; ++seed)
    for (const bool late : {false, true})
      for (const bool overlaps : {false, true}) {
        emulate::seed(seed);
        unsigned counter = 0;
        int value = 0, out[2];
        launch(meeting_before_kernel, {.blocks = 3, .threads = 64, .together = true}, nullptr,
               &value, &counter, late);
        run(following_kernel, {.blocks = 1, .threads = 32, .overlaps = overlaps}, &value, out);
        CHECK(out[0] == !(overlaps && !late) && out[1] == 1, "%d %d: %d", late, overlaps, out[0]);
      }
}

int main() {
  pipeline();
  cluster();
  grid();
  orders();
  poison();
  chains();
  meetings();
  return report("test_emulation_order");
}
