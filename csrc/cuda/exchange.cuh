// What blocks of one launch need to hand data to each other; a continuation of device.cuh, for
// compute capability 9.0 and above.
//
// Two ways. Blocks of a cluster store into each other's shared memory, and a barrier there counts
// the bytes that have come. Blocks anywhere store pieces of 16 bytes in global memory, and whoever
// waits for a piece reads it until one of its bits has changed. Neither way is a barrier of all: a
// block goes on when its own data is there. A wait of kPatience ends the kernel with an error.
//
// Names marked (warp) must be reached by all lanes of a warp together, (cluster) by all threads of
// a cluster.
#pragma once

#include "cuda/device.cuh"

namespace fastrnn::cuda {

// 16 bytes that arrive whole.
struct alignas(16) Piece {
  uint32_t x[4];
};

}  // namespace fastrnn::cuda

#if defined(FASTRNN_EMULATED)
#include "emulate_exchange.h"
#else

namespace fastrnn::cuda {

// An address in the shared memory of a block of the cluster.
using Remote = uint32_t;

#if __CUDA_ARCH__ >= 900
#define FASTRNN_SM90(...) asm volatile(__VA_ARGS__)
#else
#define FASTRNN_SM90(...) __trap()  // no kernel that comes here is launched on such a GPU
#endif

constexpr uint64_t kPatience = 10'000'000'000;  // nanoseconds

// Ends the kernel if the wait that `began` then lasts too long; 0 stands for now.
FASTRNN_DEVICE void be_patient(uint64_t& began) {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  if (began == 0)
    began = now;
  else if (now - began > kPatience)
    __trap();
}

// All threads of the cluster arrive before any goes on (cluster).
FASTRNN_DEVICE void cluster_barrier() {
  FASTRNN_SM90(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" :: : "memory");
}
// Where what lies at `shared` in this block lies in the block of that rank.
FASTRNN_DEVICE Remote remote(const void* shared, int rank) {
  uint32_t mapped = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(mapped)
      : "r"(shared_address(shared)), "r"(rank));
#endif
  return mapped;
}

// 8 bytes of shared memory that count what comes: a round is over when the bytes that were expected
// of it have come. One thread begins, before a cluster_barrier, and expects, once a round.
FASTRNN_DEVICE void arrivals_begin(uint64_t* arrivals) {
  FASTRNN_SM90("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals)) : "memory");
  FASTRNN_SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
}
FASTRNN_DEVICE void arrivals_expect(uint64_t* arrivals, uint32_t bytes) {
  FASTRNN_SM90(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)),
      "r"(bytes) : "memory");
}
// Waits for the end of a round: of the first, third ... with odd = 0, of the others with odd = 1.
// The round after the next must not be over.
FASTRNN_DEVICE void arrivals_wait(uint64_t* arrivals, uint32_t odd) {
  uint64_t began = 0;
  for (;;) {
    uint32_t over = 1;
    FASTRNN_SM90(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}" : "=r"(over) : "r"(shared_address(arrivals)),
        "r"(odd) : "memory");
    if (over) return;
    be_patient(began);
  }
}
// Stores a piece in a block of the cluster, and lets `arrivals` there count it when it has come.
FASTRNN_DEVICE void store_remote(Remote to, Piece piece, Remote arrivals) {
  FASTRNN_SM90(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
      "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "r"(piece.x[0]), "r"(piece.x[1]), "r"(piece.x[2]), "r"(piece.x[3]), "r"(arrivals) : "memory");
}

// Stores a piece where other blocks see it.
FASTRNN_DEVICE void publish(void* global, Piece piece) {
  FASTRNN_SM90(
      "{\n.reg .b128 q;\n.reg .b64 l, h;\n"
      "mov.b64 l, {%1, %2};\nmov.b64 h, {%3, %4};\nmov.b128 q, {l, h};\n"
      "st.relaxed.gpu.global.b128 [%0], q;\n}" ::"l"(global),
      "r"(piece.x[0]), "r"(piece.x[1]), "r"(piece.x[2]), "r"(piece.x[3]) : "memory");
}
// The piece that lies there now.
FASTRNN_DEVICE Piece peek(const void* global) {
  Piece piece{};
  FASTRNN_SM90(
      "{\n.reg .b128 q;\n.reg .b64 l, h;\n"
      "ld.relaxed.gpu.global.b128 q, [%4];\n"
      "mov.b128 {l, h}, q;\nmov.b64 {%0, %1}, l;\nmov.b64 {%2, %3}, h;\n}" : "=r"(piece.x[0]),
      "=r"(piece.x[1]), "=r"(piece.x[2]), "=r"(piece.x[3]) : "l"(global) : "memory");
  return piece;
}
// Peeks again until the lowest bit of the piece is `bit`.
FASTRNN_DEVICE void await(Piece& piece, const void* global, uint32_t bit) {
  uint64_t began = 0;
  while ((piece.x[0] & 1) != bit) {
    be_patient(began);
    piece = peek(global);
  }
}

// A barrier of `count` threads of the block, whole warps; `id` from 1 to 15 (warp).
FASTRNN_DEVICE void warps_barrier(int id, int count) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}
// The x of the lane whose number differs in the bits of `mask` (warp).
FASTRNN_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(~0u, x, mask); }

}  // namespace fastrnn::cuda
#endif
