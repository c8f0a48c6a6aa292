// All-gather through L2: each of 32, 64 or 128 blocks, one on an SM, writes its part of a vector of
// 8 to 64 KiB in global memory and reads the whole of it into shared memory, step after step. Five
// ways for a reader to know that the data is there:
//
//   barrier   one counter that all blocks add to and wait on
//   flag      a flag for each block, released after its part; readers wait for all flags
//   sentinel  no flag: 16-byte chunks that hold a forbidden word until they are written. A block
//             resets its part of the slot of step t + 2 at the end of step t
//   phase     no flag, no reset: one bit of each chunk alternates between uses of a slot
//   none      nothing is waited for: the traffic alone, whose answers are not checked
//
// Chunks move by single 128-bit loads and stores, which do not tear. A slot may be written again at
// step t + 2 because whoever sent its part of step t + 1 had read step t. With `sentinel` nothing
// formally orders the reset before the part of step t + 1 that other blocks wait for; a stale chunk
// would be a wrong answer in the checked launch, which compares every step.
#include "micro.cuh"

constexpr int kThreads = 256;
constexpr int kSteps = 1000;
constexpr int kRepeats = 5;

enum class Way { kBarrier, kFlag, kSentinel, kPhase, kNone };
constexpr const char* kNames[] = {"barrier", "flag", "sentinel", "phase", "none"};

template <Way kWay>
constexpr uint32_t kSlots = kWay == Way::kSentinel ? 3 : 2;
constexpr uint64_t kForbidden = ~0ull;

struct Chunk {
  uint64_t low, high;
};

__device__ inline Chunk load(const Chunk* address) {
  Chunk chunk;
  asm volatile("{\n.reg .b128 q;\nld.relaxed.gpu.global.b128 q, [%2];\nmov.b128 {%0, %1}, q;\n}"
               : "=l"(chunk.low), "=l"(chunk.high)
               : "l"(address)
               : "memory");
  return chunk;
}

__device__ inline void store(Chunk* address, Chunk chunk) {
  asm volatile(
      "{\n.reg .b128 q;\nmov.b128 q, {%0, %1};\nst.relaxed.gpu.global.b128 [%2], q;\n}" ::"l"(
          chunk.low),
      "l"(chunk.high), "l"(address)
      : "memory");
}

__device__ inline uint32_t load_acquire(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

// The top bit is 0, or with `phase` the phase of this use of the slot; in memory it begins as 0.
template <Way kWay>
__device__ inline uint64_t phase_of(uint32_t step) {
  return kWay == Way::kPhase ? (step / kSlots<kWay> + 1) & 1 : 0;
}

template <Way kWay>
__device__ inline Chunk message(uint32_t step, uint32_t index) {
  const uint64_t word = step * 0x9e3779b97f4a7c15ull + index * 0xc2b2ae3d27d4eb4full;
  return {word, ((word ^ 0x165667b19e3779f9ull) & ~(1ull << 63)) | phase_of<kWay>(step) << 63};
}

template <Way kWay>
__device__ inline bool arrived(Chunk chunk, uint32_t step) {
  if constexpr (kWay == Way::kSentinel) return chunk.high != kForbidden;
  if constexpr (kWay == Way::kPhase) return chunk.high >> 63 == phase_of<kWay>(step);
  return true;
}

// Between this block's stores of `step` and its loads. flags: one, or one a block; zero before.
template <Way kWay>
__device__ inline void synchronize(uint32_t* flags, uint32_t step) {
  if constexpr (kWay == Way::kBarrier) {
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(flags) : "memory");
      for (long long start = 0; load_acquire(flags) < gridDim.x * (step + 1);) deadline(start);
    }
    __syncthreads();
  } else if constexpr (kWay == Way::kFlag) {
    __syncthreads();
    if (threadIdx.x == 0)
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + blockIdx.x), "r"(step + 1)
                   : "memory");
    if (threadIdx.x < gridDim.x)
      for (long long start = 0; load_acquire(flags + threadIdx.x) <= step;) deadline(start);
    __syncthreads();
  }
}

// ring: kSlots vectors of kLoads * kThreads chunks. Block b owns the b-th of gridDim.x equal parts.
template <Way kWay, int kLoads>
__global__ void __launch_bounds__(kThreads, 1)
    all_gather(Chunk* ring, uint32_t* flags, bool check, Span* span, unsigned* errors) {
  extern __shared__ Chunk gathered[];
  constexpr uint32_t kChunks = kLoads * kThreads;
  const uint32_t thread = threadIdx.x, part = kChunks / gridDim.x,
                 mine = blockIdx.x * part + thread;
  unsigned wrong = 0;
  const auto compare = [&](uint32_t step) {
    for (uint32_t i = thread; i < kChunks; i += kThreads) {
      const Chunk want = message<kWay>(step, i), got = gathered[i];
      wrong += got.low != want.low || got.high != want.high;
    }
  };
  const Span start = now();
  uint32_t slot = 0;
  for (uint32_t step = 0; step < kSteps; ++step) {
    Chunk* vector = ring + slot * kChunks;
    if (thread < part) store(vector + mine, message<kWay>(step, mine));
    synchronize<kWay>(flags, step);
    Chunk chunks[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) chunks[i] = load(vector + i * kThreads + thread);
    for (long long clock = 0;;) {
      bool all = true;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) all &= arrived<kWay>(chunks[i], step);
      if (all) break;
      deadline(clock);
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (!arrived<kWay>(chunks[i], step)) chunks[i] = load(vector + i * kThreads + thread);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) gathered[i * kThreads + thread] = chunks[i];
    __syncthreads();
    if (check) {
      compare(step);
      __syncthreads();
    }
    slot = slot + 1 == kSlots<kWay> ? 0 : slot + 1;
    if (kWay == Way::kSentinel && thread < part)
      store(ring + (slot + 1 == kSlots<kWay> ? 0 : slot + 1) * kChunks + mine, {0, kForbidden});
  }
  if (thread == 0 && blockIdx.x == 0) *span = since(start);
  if (kWay != Way::kNone) compare(kSteps - 1);
  if (wrong > 0) atomicAdd(errors, wrong);
}

template <Way kWay, int kLoads>
static void measure(int blocks) {
  constexpr size_t kBytes = kLoads * kThreads * sizeof(Chunk);
  static Chunk* ring = device_array<Chunk>(kSlots<kWay> * kLoads * kThreads);
  static uint32_t* flags = device_array<uint32_t>(128);
  static Span* span = device_array<Span>(1);
  static unsigned* errors = device_array<unsigned>(1);
  // Enough shared memory that no two blocks share an SM.
  Launch launch(all_gather<kWay, kLoads>, blocks, kThreads, 120 * 1024, 0);
  std::vector<Span> spans;
  for (int repeat = -2; repeat < kRepeats; ++repeat) {
    const bool check = repeat == -2 && kWay != Way::kNone;
    CHECK(cudaMemset(flags, 0, 128 * sizeof *flags));
    CHECK(cudaMemset(ring, kWay == Way::kSentinel ? 0xff : 0, kSlots<kWay> * kBytes));
    CHECK(cudaLaunchKernelEx(&launch.config, all_gather<kWay, kLoads>, ring, flags, check, span,
                             errors));
    CHECK(cudaDeviceSynchronize());
    const unsigned wrong = to_host(errors, 1)[0];
    if (wrong > 0) fail("%s: %u wrong chunks", kNames[static_cast<int>(kWay)], wrong);
    if (repeat >= 0) spans.push_back(to_host(span, 1)[0]);
  }
  const std::string parameters =
      text("blocks=%d gather=%zu way=%s", blocks, kBytes, kNames[static_cast<int>(kWay)]);
  row("allgather", parameters, "step", cycles_per(spans, kSteps), "cycles");
  row("allgather", parameters, "step", ns_per(spans, kSteps), "ns");
}

template <Way kWay>
static void measure_all() {
  for (const int blocks : {32, 64, 128}) {
    measure<kWay, 2>(blocks);
    measure<kWay, 4>(blocks);
    measure<kWay, 8>(blocks);
    measure<kWay, 16>(blocks);
  }
}

int main() {
  measure_all<Way::kFlag>();
  measure_all<Way::kPhase>();
  measure_all<Way::kBarrier>();
  measure_all<Way::kSentinel>();
  measure_all<Way::kNone>();
}
