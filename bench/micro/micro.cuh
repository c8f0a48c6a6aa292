// What the programs of this folder share: rows, clocks, waits that end, mbarriers, clusters.
//
// A program prints one CSV row per figure to stdout: program, parameters, metric, value, unit,
// spread, samples. The value is the median of the samples, the spread the distance of their
// quartiles, both in `unit`. It exits with status 1, and a reason on stderr, at the first CUDA
// error or wrong answer; rows printed before that stand.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(call)                                                                 \
  do {                                                                              \
    const cudaError_t status = (call);                                              \
    if (status != cudaSuccess)                                                      \
      fail("%s:%d: %s: %s", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
  } while (0)

[[noreturn]] inline void fail(const char* format, ...) {
  std::fflush(stdout);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::exit(1);
}

// `text("cluster=%d", 8)`: what printf would print.
inline std::string text(const char* format, ...) {
  char buffer[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

using Samples = std::vector<double>;

// Linear interpolation between the sorted samples; `fraction` in [0, 1].
inline double quantile(Samples samples, double fraction) {
  std::sort(samples.begin(), samples.end());
  const double place = fraction * static_cast<double>(samples.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, samples.size() - 1);
  return samples[below] + (place - static_cast<double>(below)) * (samples[above] - samples[below]);
}

// `parameters` is "name=value name=value ...", without commas.
inline void row(const char* program, const std::string& parameters, const char* metric,
                const Samples& samples, const char* unit) {
  std::printf("%s,%s,%s,%.6g,%s,%.3g,%zu\n", program, parameters.c_str(), metric,
              quantile(samples, 0.5), unit, quantile(samples, 0.75) - quantile(samples, 0.25),
              samples.size());
  std::fflush(stdout);
}

// A stretch of time on one SM: its own clock, and the clock of the whole GPU.
struct Span {
  long long cycles;
  long long ns;
};

inline Samples cycles_per(const std::vector<Span>& spans, double count) {
  Samples samples;
  for (const Span& span : spans) samples.push_back(static_cast<double>(span.cycles) / count);
  return samples;
}

inline Samples ns_per(const std::vector<Span>& spans, double count) {
  Samples samples;
  for (const Span& span : spans) samples.push_back(static_cast<double>(span.ns) / count);
  return samples;
}

// Device memory for `count` values of T, each byte set to `fill`; freed when the process ends.
template <class T>
T* device_array(size_t count, int fill = 0) {
  void* memory = nullptr;
  CHECK(cudaMalloc(&memory, count * sizeof(T)));
  CHECK(cudaMemset(memory, fill, count * sizeof(T)));
  return static_cast<T*>(memory);
}

template <class T>
std::vector<T> to_host(const T* device, size_t count) {
  std::vector<T> host(count);
  CHECK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

// Milliseconds between two events around `work`, which enqueues on the default stream.
template <class Work>
double event_ms(const Work& work) {
  static cudaEvent_t events[2] = {};
  for (cudaEvent_t& event : events)
    if (event == nullptr) CHECK(cudaEventCreate(&event));
  CHECK(cudaEventRecord(events[0]));
  work();
  CHECK(cudaEventRecord(events[1]));
  CHECK(cudaEventSynchronize(events[1]));
  float ms = 0;
  CHECK(cudaEventElapsedTime(&ms, events[0], events[1]));
  return ms;
}

inline int multiprocessors() {
  int count = 0;
  CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// A launch of `blocks` blocks in clusters of `cluster`, or cooperative if `cluster` is 0. Whoever
// passes it on keeps it alive: the configuration points into it.
struct Launch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};

  template <class Kernel>
  Launch(Kernel* kernel, int blocks, int threads, size_t smem, int cluster) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(smem)));
    if (cluster > 0) {
      CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = smem;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
};

__device__ inline Span now() {
  Span span;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(span.ns)::"memory");
  span.cycles = clock64();
  return span;
}

__device__ inline Span since(Span start) {
  const Span end = now();
  return {end.cycles - start.cycles, end.ns - start.ns};
}

// Every wait calls this after a failed try, with a `start` that was 0 before the first. It ends the
// grid, and with it the program, after about a second: an error must not hold the GPU.
__device__ inline void deadline(long long& start) {
  const long long clock = clock64();
  if (start == 0) start = clock;
  if (clock - start > 2'000'000'000ll) __trap();
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
}

// The address, in the window of the cluster, of what lies at `address` in the block of rank `rank`.
__device__ inline uint32_t in_block(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// One arrival a phase. Visible to the copy engines at once, to the cluster after a cluster_sync.
__device__ inline void barrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// The phase's one arrival, announcing `bytes`. Bytes may have come in before it: the phase cannot
// end while the arrival is pending, and the count of bytes may be below zero meanwhile.
__device__ inline void barrier_arm(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// How a thread waits on an mbarrier: the instruction and the scope of the acquire. At the scope of
// the cluster the compiler adds an invalidation of L1 to every try.
enum class Wait { kTry, kTest, kTryCluster };

template <Wait kWait>
__device__ inline bool barrier_done(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  if constexpr (kWait == Wait::kTry)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  else if constexpr (kWait == Wait::kTest)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  else
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  return done != 0;
}

template <Wait kWait = Wait::kTry>
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  for (long long start = 0; !barrier_done<kWait>(barrier, parity);) deadline(start);
}

// 16 bytes to `address` of another block, counted on that block's mbarrier at `barrier`; both are
// addresses from in_block.
__device__ inline void store_async(uint32_t address, uint4 value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
      : "memory");
}
