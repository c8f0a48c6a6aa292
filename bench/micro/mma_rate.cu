// Cycles of a k-step of mma.sync m16n8k16 (bf16, float accumulators) whose A operand, the weights,
// stays in registers: the inner loop of a persistent recurrence.
//
// The block holds 128 KiB of weights, 128 x 512: the share of one of 16 SMs in an LSTM of H = 512.
// Each warp keeps `tiles` tiles of 16 rows by `ksteps` tiles of 16 columns of it, and the 512
// columns are split over 32 / ksteps warps. Either 8 warps with 128 registers of weights each, or
// 16 with 64, which a limit of 128 registers a thread then has to hold together with everything
// else. B, the hidden state of N = 8, 16 or 32 sequences, comes from shared memory through ldmatrix
// (`b=smem`), as it must there, or stays in registers (`b=reg`): the rate of the units alone.
//
// A k-step is `tiles` x N / 8 products a warp, in all warps; a pass is `ksteps` of them. Numbers
// are small integers, so that the sums over all passes are exact and compared for equality.
#include "micro.cuh"

#include <cuda_bf16.h>

constexpr int kRows = 128, kDepth = 512;
constexpr int kPitch = kDepth + 8;  // of a row of B: 16 more bytes keep ldmatrix free of conflicts
constexpr int kPasses = 500;
constexpr int kRepeats = 7;

__device__ inline uint32_t pair(const __nv_bfloat16* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void load_matrices(uint32_t (&d)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

// weights: kRows x kDepth. state: 8 * kN x kDepth. out: (warps that split the depth) x kRows x 8
// kN, the sum over all passes. kN: tiles of 8 sequences.
template <int kWarps, int kTiles, int kSteps, int kN, bool kShared>
__global__ void __launch_bounds__(32 * kWarps, 1)
    multiply(const __nv_bfloat16* weights, const __nv_bfloat16* state, float* out, Span* span) {
  constexpr int kSplit = kDepth / 16 / kSteps;
  static_assert(kWarps * kTiles * 16 == kRows * kSplit);
  extern __shared__ __nv_bfloat16 shared[];  // 8 * kN x kPitch
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, column = 2 * (lane % 4);
  const int part = warp % kSplit, row0 = warp / kSplit * kTiles * 16, k0 = part * kSteps * 16;
  for (int i = threadIdx.x; i < 8 * kN * kDepth; i += 32 * kWarps)
    shared[i / kDepth * kPitch + i % kDepth] = state[i];

  uint32_t a[kTiles][kSteps][4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const __nv_bfloat16* corner =
          weights + (row0 + tile * 16 + group) * kDepth + k0 + step * 16 + column;
      a[tile][step][0] = pair(corner);
      a[tile][step][1] = pair(corner + 8 * kDepth);
      a[tile][step][2] = pair(corner + 8);
      a[tile][step][3] = pair(corner + 8 * kDepth + 8);
    }
  float c[kTiles][kN][4] = {};
  __syncthreads();

  // One ldmatrix brings the four 8 x 8 matrices of two k-steps of 8 sequences: lane i addresses row
  // i % 8 of matrix i / 8, eight columns further for each.
  const uint32_t b0 = shared_address(shared + lane % 8 * kPitch + k0 + lane / 8 * 8);
  uint32_t b[kN][4];
#pragma unroll
  for (int n = 0; n < kN; ++n) load_matrices(b[n], b0 + n * 8 * kPitch * 2);
  const Span start = now();
#pragma unroll 1
  for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
    for (int step = 0; step < kSteps; step += 2) {
      if constexpr (kShared)
#pragma unroll
        for (int n = 0; n < kN; ++n) load_matrices(b[n], b0 + (n * 8 * kPitch + step * 16) * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int n = 0; n < kN; ++n)
            multiply_add(c[tile][n], a[tile][step + half], b[n] + 2 * half);
    }
    if constexpr (kShared) __syncwarp();
  }
  __syncthreads();
  if (threadIdx.x == 0) *span = since(start);

#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out[(part * kRows + row0 + tile * 16 + group + i / 2 * 8) * 8 * kN + n * 8 + column +
            i % 2] = c[tile][n][i];
}

static int weight(int row, int k) { return (row * 7 + k * 13 + row * k % 5) % 5 - 2; }
static int hidden(int n, int k) { return (n * 11 + k * 3 + n * k % 7) % 3 - 1; }

template <int kWarps, int kTiles, int kSteps, int kN, bool kShared>
static void measure() {
  constexpr int kSplit = kDepth / 16 / kSteps, kColumns = 8 * kN;
  std::vector<__nv_bfloat16> weights(kRows * kDepth), state(kColumns * kDepth);
  for (int i = 0; i < kRows * kDepth; ++i)
    weights[i] = static_cast<float>(weight(i / kDepth, i % kDepth));
  for (int i = 0; i < kColumns * kDepth; ++i)
    state[i] = static_cast<float>(hidden(i / kDepth, i % kDepth));
  static __nv_bfloat16* device_weights = device_array<__nv_bfloat16>(kRows * kDepth);
  static __nv_bfloat16* device_state = device_array<__nv_bfloat16>(kColumns * kDepth);
  static float* out = device_array<float>(kSplit * kRows * kColumns, 0xff);
  static Span* span = device_array<Span>(1);
  CHECK(cudaMemcpy(device_weights, weights.data(), weights.size() * 2, cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(device_state, state.data(), state.size() * 2, cudaMemcpyHostToDevice));

  const auto kernel = multiply<kWarps, kTiles, kSteps, kN, kShared>;
  const size_t smem = kColumns * kPitch * sizeof(__nv_bfloat16);
  Launch launch(kernel, multiprocessors(), 32 * kWarps, smem, 0);
  std::vector<Span> spans;
  for (int repeat = -1; repeat < kRepeats; ++repeat) {
    CHECK(cudaLaunchKernelEx(&launch.config, kernel,
                             static_cast<const __nv_bfloat16*>(device_weights),
                             static_cast<const __nv_bfloat16*>(device_state), out, span));
    CHECK(cudaDeviceSynchronize());
    if (repeat >= 0) spans.push_back(to_host(span, 1)[0]);
  }
  const std::vector<float> got = to_host(out, kSplit * kRows * kColumns);
  for (int part = 0; part < kSplit; ++part)
    for (int row = 0; row < kRows; ++row)
      for (int n = 0; n < kColumns; ++n) {
        int want = 0;
        for (int k = 0; k < kSteps * 16; ++k) {
          // With b=reg every pair of k-steps sees the first two of its warp.
          const int column = part * kSteps * 16;
          want += weight(row, column + k) * hidden(n, column + (kShared ? k : k % 32));
        }
        if (got[(part * kRows + row) * kColumns + n] != static_cast<float>(want * kPasses))
          fail("mma_rate: row %d, sequence %d is wrong", row, n);
      }

  const std::string parameters = text("n=%d warps=%d tiles=%d ksteps=%d b=%s", kColumns, kWarps,
                                      kTiles, kSteps, kShared ? "smem" : "reg");
  constexpr double kFlops = 2.0 * kRows * kDepth * kColumns;
  Samples rate;
  for (const double cycles : cycles_per(spans, kPasses)) rate.push_back(kFlops / cycles);
  row("mma_rate", parameters, "kstep", cycles_per(spans, kPasses * kSteps), "cycles");
  row("mma_rate", parameters, "pass", cycles_per(spans, kPasses), "cycles");
  row("mma_rate", parameters, "rate", rate, "FLOP/clk/SM");
}

template <int kN, bool kShared>
static void measure_splits() {
  measure<8, 1, 32, kN, kShared>();
  measure<8, 2, 16, kN, kShared>();
  measure<8, 4, 8, kN, kShared>();
  measure<16, 1, 16, kN, kShared>();
  measure<16, 2, 8, kN, kShared>();
}

int main() {
  measure_splits<1, true>();
  measure_splits<2, true>();
  measure_splits<4, true>();
  measure_splits<1, false>();
  measure_splits<2, false>();
  measure_splits<4, false>();
}
