// One-way latency of an asynchronous store into another block's shared memory that completes on an
// mbarrier there: the shortest hop between two SMs of a cluster.
//
// One thread of rank 0 and one of a peer send 16 bytes back and forth. A hop is the store, the wait
// at the other side, the load of what came and the addition to it that the answer depends on; half
// a round trip. Each hop adds 1, so the last number proves that all of them happened in turn.
#include "micro.cuh"

constexpr int kRounds = 2000;
constexpr int kRepeats = 7;

template <Wait kWait>
__global__ void ping_pong(uint32_t peer, Span* span, unsigned* last) {
  __shared__ alignas(16) uint4 box;
  __shared__ uint64_t barrier;
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) barrier_init(&barrier);
  cluster_sync();
  if (threadIdx.x == 0 && (rank == 0 || rank == peer)) {
    const uint32_t other = rank == 0 ? peer : 0;
    const uint32_t remote_box = in_block(shared_address(&box), other);
    const uint32_t remote_barrier = in_block(shared_address(&barrier), other);
    unsigned value = 0;
    const Span start = now();
    for (uint32_t round = 0; round < kRounds; ++round) {
      if (rank == 0) store_async(remote_box, make_uint4(value + 1, 0, 0, 0), remote_barrier);
      barrier_arm(&barrier, sizeof box);
      barrier_wait<kWait>(&barrier, round & 1);
      value = *static_cast<volatile unsigned*>(&box.x);
      if (rank != 0) store_async(remote_box, make_uint4(value + 1, 0, 0, 0), remote_barrier);
    }
    if (rank == 0) {
      *span = since(start);
      *last = value;
    }
  }
  cluster_sync();  // No block may leave before all that was sent to it has come in.
}

template <Wait kWait>
static void measure(int cluster, const char* wait) {
  static Span* span = device_array<Span>(1);
  static unsigned* last = device_array<unsigned>(1);
  // Enough shared memory that no two blocks share an SM.
  Launch launch(ping_pong<kWait>, cluster, 32, 120 * 1024, cluster);
  std::vector<Span> all;
  Samples peers;  // median cycles of each peer
  for (int peer = 1; peer < cluster; ++peer) {
    std::vector<Span> spans;
    for (int repeat = 0; repeat <= kRepeats; ++repeat) {
      CHECK(cudaLaunchKernelEx(&launch.config, ping_pong<kWait>, static_cast<uint32_t>(peer), span,
                               last));
      CHECK(cudaDeviceSynchronize());
      const unsigned got = to_host(last, 1)[0];
      if (got != 2 * kRounds) fail("ping_pong: %u hops arrived, not %d", got, 2 * kRounds);
      if (repeat > 0) spans.push_back(to_host(span, 1)[0]);
    }
    peers.push_back(quantile(cycles_per(spans, 2 * kRounds), 0.5));
    all.insert(all.end(), spans.begin(), spans.end());
  }
  const std::string parameters = text("cluster=%d wait=%s", cluster, wait);
  row("dsmem_latency", parameters, "one_way", cycles_per(all, 2 * kRounds), "cycles");
  row("dsmem_latency", parameters, "one_way", ns_per(all, 2 * kRounds), "ns");
  row("dsmem_latency", parameters, "one_way_farthest", {quantile(peers, 1)}, "cycles");
}

int main() {
  for (const int cluster : {2, 4, 8, 16}) {
    measure<Wait::kTry>(cluster, "try");
    measure<Wait::kTest>(cluster, "test");
    measure<Wait::kTryCluster>(cluster, "try.cluster");
  }
}
