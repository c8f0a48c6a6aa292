// Bandwidth from L2 into the SMs, one block of 256 threads on each: all read the same 64 KiB
// (`share=all`), as the blocks of a recurrence read the hidden state, or each its own
// (`share=none`), as they would read weights that do not fit on the SM.
//
// Two ways: 16-byte loads that bypass L1, 16 in flight a thread (ld.relaxed.gpu; ptxas moves
// ld.global.cg out of the loop, volatile or not); and the bulk copy engine, 8 KiB a copy into 8
// stages of shared memory. The loaded words are summed; the copied bytes are summed once, after the
// last pass, over shared memory that was zero before the first.
#include "micro.cuh"

constexpr int kThreads = 256;
constexpr int kLoads = 16;
constexpr int kChunks = kThreads * kLoads;  // 16 bytes each: 64 KiB
constexpr int kStages = 8;
constexpr int kPasses = 2000;
constexpr int kRepeats = 7;

__device__ inline uint32_t sum(uint4 value) { return value.x + value.y + value.z + value.w; }

__device__ inline void add_up(uint32_t value, uint32_t* total) {
  value = __reduce_add_sync(~0u, value);
  if (threadIdx.x % 32 == 0) atomicAdd(total, value);
}

// data: kChunks chunks, and as many more for each block if `stride` is kChunks. totals: one a
// block.
__global__ void __launch_bounds__(kThreads, 1)
    load_words(const uint4* data, uint32_t stride, Span* spans, uint32_t* totals) {
  const uint4* mine = data + blockIdx.x * stride + threadIdx.x;
  uint32_t total = 0;
  const Span start = now();
  for (int pass = 0; pass < kPasses; ++pass) {
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(values[i].x), "=r"(values[i].y), "=r"(values[i].z), "=r"(values[i].w)
                   : "l"(mine + i * kThreads)
                   : "memory");
#pragma unroll
    for (int i = 0; i < kLoads; ++i) total += sum(values[i]);
  }
  __syncthreads();
  if (threadIdx.x == 0) spans[blockIdx.x] = since(start);
  add_up(total, totals + blockIdx.x);
}

__global__ void __launch_bounds__(kThreads, 1)
    copy_bulk(const uint4* data, uint32_t stride, Span* spans, uint32_t* totals) {
  extern __shared__ uint4 stages[];
  __shared__ uint64_t full[kStages];
  constexpr uint32_t kStageChunks = kChunks / kStages;
  constexpr uint32_t kStageBytes = kStageChunks * sizeof(uint4);
  for (int i = threadIdx.x; i < kChunks; i += kThreads) stages[i] = make_uint4(0, 0, 0, 0);
  if (threadIdx.x < kStages) barrier_init(&full[threadIdx.x]);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint4* mine = data + blockIdx.x * stride;
    const auto issue = [&](int stage) {
      barrier_arm(&full[stage], kStageBytes);
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(shared_address(stages + stage * kStageChunks)),
          "l"(__cvta_generic_to_global(mine + stage * kStageChunks)), "r"(kStageBytes),
          "r"(shared_address(&full[stage]))
          : "memory");
    };
    const Span start = now();
    for (int stage = 0; stage < kStages; ++stage) issue(stage);
    for (int pass = 0; pass < kPasses; ++pass) {
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_wait(&full[stage], pass & 1);
        if (pass + 1 < kPasses) issue(stage);
      }
    }
    spans[blockIdx.x] = since(start);
  }
  __syncthreads();
  for (int stage = 0; stage < kStages; ++stage) barrier_wait(&full[stage], (kPasses - 1) & 1);
  uint32_t total = 0;
  for (int i = threadIdx.x; i < kChunks; i += kThreads) total += sum(stages[i]);
  add_up(total, totals + blockIdx.x);
}

using Kernel = void(const uint4*, uint32_t, Span*, uint32_t*);

static void measure(Kernel* kernel, const char* way, int blocks, bool own) {
  static const int most = multiprocessors();
  static uint4* data = device_array<uint4>(static_cast<size_t>(most) * kChunks);
  static std::vector<uint32_t> sums;  // of each 64 KiB
  if (sums.empty()) {
    std::vector<uint4> values(static_cast<size_t>(most) * kChunks);
    sums.resize(static_cast<size_t>(most));
    for (size_t i = 0; i < values.size(); ++i) {
      const uint32_t word = static_cast<uint32_t>(i) * 0x9e3779b1u;
      values[i] = {word, word ^ 0x85ebca6bu, word >> 7, ~word};
      sums[i / kChunks] += values[i].x + values[i].y + values[i].z + values[i].w;
    }
    CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(uint4), cudaMemcpyHostToDevice));
  }
  static Span* spans = device_array<Span>(static_cast<size_t>(most));
  static uint32_t* totals = device_array<uint32_t>(static_cast<size_t>(most));
  const uint32_t times = kernel == load_words ? kPasses : 1;
  // Enough shared memory that no two blocks share an SM.
  Launch launch(kernel, blocks, kThreads, 120 * 1024, 0);
  std::vector<Span> slowest;
  for (int repeat = -1; repeat < kRepeats; ++repeat) {
    CHECK(cudaMemset(totals, 0, static_cast<size_t>(most) * sizeof *totals));
    const uint32_t stride = own ? kChunks : 0;
    CHECK(cudaLaunchKernelEx(&launch.config, kernel, static_cast<const uint4*>(data), stride, spans,
                             totals));
    CHECK(cudaDeviceSynchronize());
    const auto got = to_host(totals, static_cast<size_t>(blocks));
    for (size_t block = 0; block < got.size(); ++block)
      if (got[block] != times * sums[own ? block : 0]) fail("%s: block %zu sums wrong", way, block);
    const auto all = to_host(spans, static_cast<size_t>(blocks));
    if (repeat >= 0)
      slowest.push_back(*std::max_element(all.begin(), all.end(),
                                          [](Span a, Span b) { return a.cycles < b.cycles; }));
  }
  const std::string parameters =
      text("blocks=%d share=%s way=%s", blocks, own ? "none" : "all", way);
  constexpr double kBytes = static_cast<double>(kChunks * sizeof(uint4)) * kPasses;
  Samples per_sm, together;
  for (const double cycles : cycles_per(slowest, kBytes)) per_sm.push_back(1 / cycles);
  for (const double ns : ns_per(slowest, kBytes)) together.push_back(blocks / ns / 1e3);
  row("l2_read", parameters, "read", per_sm, "B/clk/SM");
  row("l2_read", parameters, "read", together, "TB/s");
}

int main() {
  for (const int blocks : {1, 32, 64, 128, multiprocessors()}) {
    for (const bool own : {false, true}) {
      measure(load_words, "load", blocks, own);
      measure(copy_bulk, "bulk", blocks, own);
    }
  }
}
