// How many clusters of 2, 4, 8 and 16 blocks run at once with one block on an SM.
//
// The runtime's own answer (cudaOccupancyMaxActiveClusters), and a proof: every block counts itself
// in and waits until all have; a launch of more clusters than fit waits in vain. 200 KiB of shared
// memory keep a second block off each SM; the number of different SMs is checked.
#include "micro.cuh"

#include <set>

constexpr int kThreads = 256;
constexpr size_t kSmem = 200 * 1024;

struct Result {
  unsigned arrived;  // blocks
  unsigned late;     // blocks that gave up waiting
};

__global__ void meet(unsigned target, Result* result, unsigned* sm) {
  if (threadIdx.x != 0) return;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm[blockIdx.x]));
  atomicAdd(&result->arrived, 1);
  const long long start = clock64();
  while (*static_cast<volatile unsigned*>(&result->arrived) < target) {
    if (clock64() - start > 40'000'000) {  // 20 ms
      atomicAdd(&result->late, 1);
      return;
    }
  }
}

// Whether `clusters` clusters were all resident together.
static bool fits(int cluster, int clusters) {
  static Result* result = device_array<Result>(1);
  static unsigned* sm = device_array<unsigned>(4096);
  const int blocks = cluster * clusters;
  Launch launch(meet, blocks, kThreads, kSmem, cluster);
  CHECK(cudaMemset(result, 0, sizeof(Result)));
  CHECK(cudaLaunchKernelEx(&launch.config, meet, static_cast<unsigned>(blocks), result, sm));
  CHECK(cudaDeviceSynchronize());
  const Result seen = to_host(result, 1)[0];
  if (seen.arrived != static_cast<unsigned>(blocks))
    fail("%d blocks of %d arrived", static_cast<int>(seen.arrived), blocks);
  const std::vector<unsigned> sms = to_host(sm, static_cast<size_t>(blocks));
  if (seen.late == 0 && std::set<unsigned>(sms.begin(), sms.end()).size() != sms.size())
    fail("two blocks shared an SM");
  return seen.late == 0;
}

int main() {
  for (const int cluster : {1, 2, 4, 8, 16}) {
    const std::string parameters = text("cluster=%d kib=%zu", cluster, kSmem / 1024);
    Launch launch(meet, cluster, kThreads, kSmem, cluster);
    int occupancy = 0;
    CHECK(cudaOccupancyMaxActiveClusters(&occupancy, meet, &launch.config));
    row("clusters", parameters, "occupancy", {static_cast<double>(occupancy)}, "clusters");
    int resident = std::min(occupancy + 1, multiprocessors() / cluster);
    while (resident > 0 && !fits(cluster, resident)) --resident;
    row("clusters", parameters, "resident", {static_cast<double>(resident)}, "clusters");
    row("clusters", parameters, "sms", {static_cast<double>(resident * cluster)}, "SMs");
    if (resident != occupancy)
      std::fprintf(stderr, "%s: occupancy says %d, %d met\n", parameters.c_str(), occupancy,
                   resident);
  }
}
