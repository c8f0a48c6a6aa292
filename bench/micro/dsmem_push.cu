// All-to-all push inside a cluster: each block sends its slice of a vector to all others, so that
// each ends with the whole vector: the exchange of a recurrence whose hidden state is split over
// the cluster. `gather` is the size of the vector in bytes; a block receives gather * (S - 1) / S.
//
// Two buffers, one mbarrier each, no cluster barrier. A block writes buffer t % 2 of its peers at
// step t only after it received all of step t - 1, which a peer sends after it read step t - 2: the
// last contents of that buffer.
//
// Two ways: 16-byte asynchronous stores from registers, and one bulk copy to each peer. Steps run
// back to back and nothing is computed, so the time of a step is latency plus transfer, and a line
// through several sizes tells them apart. A launch that compares every step's vector precedes the
// timed ones; these compare the last vector.
#include "micro.cuh"

constexpr int kThreads = 256;
constexpr int kSteps = 1000;
constexpr int kRepeats = 5;

__device__ inline uint4 message(uint32_t step, uint32_t chunk) {
  const uint32_t word = step * 0x9e3779b1u + chunk * 0x85ebca6bu;
  return make_uint4(word, word ^ 0x5bd1e995u, word + 0x27d4eb2fu, ~word);
}

__device__ inline bool differs(uint4 a, uint4 b) {
  return a.x != b.x || a.y != b.y || a.z != b.z || a.w != b.w;
}

// chunks: of 16 bytes, in the vector. slice_bits: log2 of those in a slice. spans: one a cluster.
template <bool kBulk>
__global__ void __launch_bounds__(kThreads, 1)
    push(uint32_t chunks, uint32_t slice_bits, bool check, Span* spans, unsigned* errors) {
  extern __shared__ uint4 buffers[];
  __shared__ uint64_t full[2];
  const uint32_t rank = cluster_rank(), size = cluster_size(), thread = threadIdx.x;
  const uint32_t slice = 1u << slice_bits, first = rank << slice_bits;
  if (thread < 2) barrier_init(&full[thread]);
  cluster_sync();
  unsigned wrong = 0;
  const auto compare = [&](const uint4* buffer, uint32_t step) {
    for (uint32_t chunk = thread; chunk < chunks; chunk += kThreads)
      wrong += differs(buffer[chunk], message(step, chunk));
  };
  const Span start = now();
  for (uint32_t step = 0; step < kSteps; ++step) {
    uint4* buffer = buffers + (step & 1) * chunks;
    uint64_t* barrier = &full[step & 1];
    if (thread == 0) barrier_arm(barrier, (size - 1) * slice * sizeof(uint4));
    for (uint32_t i = thread; i < slice; i += kThreads)
      buffer[first + i] = message(step, first + i);
    if constexpr (kBulk) {
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncthreads();
      const uint32_t copy = thread / 32 + thread % 32 * (kThreads / 32);  // spread over the warps
      if (copy < size - 1) {
        const uint32_t peer = (rank + 1 + copy) & (size - 1);
        const uint32_t source = shared_address(buffer + first);
        asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
            "[%0], [%1], %2, [%3];" ::"r"(in_block(source, peer)),
            "r"(source), "r"(slice * static_cast<uint32_t>(sizeof(uint4))),
            "r"(in_block(shared_address(barrier), peer))
            : "memory");
      }
    } else {
#pragma unroll 4
      for (uint32_t i = thread; i < (size - 1) << slice_bits; i += kThreads) {
        const uint32_t peer = (rank + 1 + (i >> slice_bits)) & (size - 1);
        const uint32_t chunk = first + (i & (slice - 1));
        store_async(in_block(shared_address(buffer + chunk), peer), message(step, chunk),
                    in_block(shared_address(barrier), peer));
      }
    }
    barrier_wait(barrier, (step >> 1) & 1);
    __syncthreads();
    if (check) {
      compare(buffer, step);
      __syncthreads();
    }
  }
  if (thread == 0 && rank == 0) spans[blockIdx.x / size] = since(start);
  compare(buffers + ((kSteps - 1) & 1) * chunks, kSteps - 1);
  if (wrong > 0) atomicAdd(errors, wrong);
  cluster_sync();
}

template <bool kBulk>
static void measure(int cluster, int clusters, int gather) {
  static Span* spans = device_array<Span>(256);
  static unsigned* errors = device_array<unsigned>(1);
  const uint32_t chunks = static_cast<uint32_t>(gather) / sizeof(uint4);
  uint32_t slice_bits = 0;
  while ((static_cast<uint32_t>(cluster) << slice_bits) < chunks) ++slice_bits;
  // Enough shared memory that no two blocks share an SM.
  const size_t smem = std::max<size_t>(2 * static_cast<size_t>(gather), 120 * 1024);
  Launch launch(push<kBulk>, cluster * clusters, kThreads, smem, cluster);
  std::vector<Span> slowest;
  for (int repeat = -2; repeat < kRepeats; ++repeat) {
    CHECK(cudaLaunchKernelEx(&launch.config, push<kBulk>, chunks, slice_bits, repeat == -2, spans,
                             errors));
    CHECK(cudaDeviceSynchronize());
    const unsigned wrong = to_host(errors, 1)[0];
    if (wrong > 0) fail("push: %u wrong chunks", wrong);
    const std::vector<Span> all = to_host(spans, static_cast<size_t>(clusters));
    if (repeat >= 0)
      slowest.push_back(*std::max_element(all.begin(), all.end(),
                                          [](Span a, Span b) { return a.cycles < b.cycles; }));
  }
  const std::string parameters = text("cluster=%d clusters=%d gather=%d way=%s", cluster, clusters,
                                      gather, kBulk ? "bulk" : "st_async");
  const double received = gather - gather / cluster;
  Samples rate;
  for (const double cycles : cycles_per(slowest, kSteps)) rate.push_back(received / cycles);
  row("dsmem_push", parameters, "step", cycles_per(slowest, kSteps), "cycles");
  row("dsmem_push", parameters, "step", ns_per(slowest, kSteps), "ns");
  row("dsmem_push", parameters, "received", rate, "B/clk/SM");
}

// The most clusters of `cluster` blocks that run at once, one block on an SM.
static int most_clusters(int cluster) {
  Launch launch(push<false>, cluster, kThreads, 200 * 1024, cluster);
  int clusters = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&clusters, push<false>, &launch.config));
  return clusters;
}

int main() {
  for (const int cluster : {2, 4, 8, 16}) {
    const int most = most_clusters(cluster);
    if (most == 0) fail("no cluster of %d blocks fits", cluster);
    for (const int clusters : {1, most}) {
      for (int gather = 1024; gather <= 64 * 1024; gather *= 2) {
        measure<false>(cluster, clusters, gather);
        measure<true>(cluster, clusters, gather);
      }
    }
  }
}
