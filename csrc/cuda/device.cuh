// Everything of CUDA that a kernel touches, one name each; kernels use no other intrinsic.
//
// Compiled by nvcc the names are intrinsics and PTX. With FASTRNN_EMULATED defined, "emulate.h"
// implements the same names on the host, and the kernels run on a CPU (tests/cpp).
//
// A warp has 32 lanes; a block a multiple of 32 threads; grids have one dimension.
// Names marked (warp) must be reached by all lanes of a warp together, names marked (block) by all
// threads of a block. `launch`, the one name for host code, is in runtime.cuh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/shape.h"

namespace fastrnn::cuda {

// `count` values that are loaded and stored at once, aligned to their size: at most 16 bytes.
template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  static_assert(count * sizeof(T) <= 16);
  T x[count];
};
// As many as fit in 16 bytes.
template <class T>
inline constexpr int kPack = static_cast<int>(16 / sizeof(T));

// A float of which the tensor cores use the upper 19 bits: sign, exponent, 10 bits.
struct Tf32;

// Operands of mma, both K-contiguous in memory: A is 16 rows of 32 bytes, B 8 columns of 32 bytes,
// so K is 16 for Half and Bfloat16 and 8 for Tf32. With g = lane / 4 and t = lane % 4, word x[i] is
//   A  word t + 4 (i / 2) of row g + 8 (i % 2)
//   B  word t + 4 i of column g
// where a word is 4 bytes: two neighbours in K, the first in the lower half, or one Tf32.
template <class Operand>
struct FragmentA {
  uint32_t x[4];
};
template <class Operand>
struct FragmentB {
  uint32_t x[2];
};

}  // namespace fastrnn::cuda

#if defined(FASTRNN_EMULATED)
#include "emulate.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#define FASTRNN_KERNEL __global__
#define FASTRNN_DEVICE __device__ __forceinline__
// Before a parameter of a kernel that is a const struct: read where it lies, never copied.
#define FASTRNN_GRID_CONSTANT __grid_constant__
// After FASTRNN_KERNEL: the most threads of a block, and blocks that shall fit on a processor.
#define FASTRNN_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define FASTRNN_UNROLL _Pragma("unroll")

namespace fastrnn::cuda {

// Where a thread is. `lane` and `warp` are its place in the warp, and the warp's in the block.
FASTRNN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
FASTRNN_DEVICE int block() { return static_cast<int>(blockIdx.x); }
FASTRNN_DEVICE int lane() { return thread() % 32; }
FASTRNN_DEVICE int warp() { return thread() / 32; }

// The block's dynamic shared memory, aligned to 128 bytes; its contents are undefined at first.
FASTRNN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char fastrnn_shared_memory[];
  return fastrnn_shared_memory;
}

// Storage types; conversions round to nearest, ties to even.
using Half = __half;
using Bfloat16 = __nv_bfloat16;

FASTRNN_DEVICE float to_float(Half x) { return __half2float(x); }
FASTRNN_DEVICE float to_float(Bfloat16 x) { return __bfloat162float(x); }
FASTRNN_DEVICE float to_float(float x) { return x; }
template <class T>
FASTRNN_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, Half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, Bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}
// To the nearest Tf32, ties away from zero.
FASTRNN_DEVICE float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// Within 2 ULP, and what is smaller than 2^-126 is 0.
FASTRNN_DEVICE float quick_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FASTRNN_DEVICE float quick_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// An unsigned type of CUDA of that many bytes.
template <size_t bytes>
using Word = std::conditional_t<
    bytes == 2, unsigned short,
    std::conditional_t<bytes == 4, unsigned, std::conditional_t<bytes == 8, uint2, uint4>>>;

// `count` values from or to an address aligned to their size, in one access.
template <int count, class T>
FASTRNN_DEVICE Pack<T, count> load(const T* from) {
  const auto word = *reinterpret_cast<const Word<sizeof(Pack<T, count>)>*>(from);
  Pack<T, count> pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}
template <int count, class T>
FASTRNN_DEVICE void store(T* to, const Pack<T, count>& pack) {
  Word<sizeof pack> word;
  memcpy(&word, &pack, sizeof pack);
  *reinterpret_cast<Word<sizeof pack>*>(to) = word;
}
// The same past the first cache, which does not see what other processors write while a kernel
// runs. Global memory only.
template <int count, class T>
FASTRNN_DEVICE Pack<T, count> load_uncached(const T* from) {
  const auto word = __ldcg(reinterpret_cast<const Word<sizeof(Pack<T, count>)>*>(from));
  Pack<T, count> pack;
  memcpy(&pack, &word, sizeof pack);
  return pack;
}

FASTRNN_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Begins to copy 16 bytes, or 16 zeros if not `inside`; both addresses are aligned to 16 bytes, and
// `global` is not read if not `inside`. Neither end may be touched before this thread's
// copies_wait.
FASTRNN_DEVICE void copy_async(void* shared, const void* global, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
// Makes a group of this thread's copies since the last; a group may be empty.
FASTRNN_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `pending` youngest groups of this thread are under way. What other
// threads copied is there after a block_barrier behind their wait.
template <int pending>
FASTRNN_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// All threads of the block arrive before any goes on, and see what the others wrote before (block).
FASTRNN_DEVICE void block_barrier() { __syncthreads(); }

// Loads A from shared memory (warp). Each lane gives the address, aligned to 16 bytes, of half
// lane / 16 (bytes 16 to 31 are half 1) of row lane % 16.
template <class Operand>
FASTRNN_DEVICE FragmentA<Operand> load_fragment_a(const void* shared) {
  FragmentA<Operand> a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x[0]), "=r"(a.x[1]), "=r"(a.x[2]), "=r"(a.x[3])
               : "r"(shared_address(shared))
               : "memory");
  return a;
}
// Loads the B of 16 columns (warp): b[0] the first 8, b[1] the others. Each lane gives the address,
// aligned to 16 bytes, of half (lane / 8) % 2 of column lane % 8 + 8 (lane / 16).
template <class Operand>
FASTRNN_DEVICE void load_fragment_b(FragmentB<Operand> (&b)[2], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0].x[0]), "=r"(b[0].x[1]), "=r"(b[1].x[0]), "=r"(b[1].x[1])
               : "r"(shared_address(shared))
               : "memory");
}
// Loads the B of 8 columns (warp). Lanes 0 to 15 give the addresses of half lane / 8 of column
// lane % 8; those of the others are not used, but must be aligned too.
template <class Operand>
FASTRNN_DEVICE FragmentB<Operand> load_fragment_b(const void* shared) {
  FragmentB<Operand> b;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(b.x[0]), "=r"(b.x[1])
               : "r"(shared_address(shared))
               : "memory");
  return b;
}

// d += A B, accumulated in float (warp). With g = lane / 4 and t = lane % 4, d[i] is the sum of row
// g + 8 (i / 2) and column 2 t + i % 2.
#define FASTRNN_MMA(kind)                                                                         \
  asm("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                            \
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]))
FASTRNN_DEVICE void mma(float (&d)[4], const FragmentA<Half>& a, const FragmentB<Half>& b) {
  FASTRNN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
FASTRNN_DEVICE void mma(float (&d)[4], const FragmentA<Bfloat16>& a, const FragmentB<Bfloat16>& b) {
  FASTRNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
FASTRNN_DEVICE void mma(float (&d)[4], const FragmentA<Tf32>& a, const FragmentB<Tf32>& b) {
  FASTRNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef FASTRNN_MMA

// A launch that `overlaps` begins once all blocks of the launch before it have called
// next_grid_start or ended. Only behind previous_grid_wait, which every thread that ends must have
// called, has that launch ended and is what it wrote visible.
FASTRNN_DEVICE void previous_grid_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
FASTRNN_DEVICE void next_grid_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fastrnn::cuda

#include "cuda/runtime.cuh"
#endif

namespace fastrnn::cuda {

// The type of the arithmetic on values stored as T.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

template <class T>
FASTRNN_DEVICE Compute<T> to_compute(T x) {
  return to_float(x);
}
FASTRNN_DEVICE double to_compute(double x) { return x; }
template <class T>
FASTRNN_DEVICE T from_compute(Compute<T> x) {
  if constexpr (sizeof(T) == sizeof(double))
    return x;
  else
    return from_float<T>(x);
}

template <class T>
FASTRNN_DEVICE Pack<T, kPack<T>> load16(const T* from) {
  return load<kPack<T>>(from);
}

}  // namespace fastrnn::cuda
