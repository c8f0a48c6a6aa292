// The micro-kernel of matrix products where an instruction takes one factor from any lane of a
// register: 64-bit ARM. A register of a left-hand row serves as many steps as it has lanes.
#pragma once

#include "cpu/operands.h"

namespace FASTRNN_NAMESPACE {

// sum += a[L] b in every lane. Not the compilers' own functions: of several products with one lane
// GCC copies the lane to all of a register first.
template <class O, int L>
FASTRNN_INLINE void multiply_add_lane(Vec<O>& sum, Operands<O> a, Operands<O> b) {
  if constexpr (kTerms<O> == 2)
    asm("bfdot %0.4s, %1.8h, %2.2h[%c3]" : "+w"(sum) : "w"(b), "w"(a), "i"(L));
  else if constexpr (sizeof(O) == 4)
    asm("fmla %0.4s, %1.4s, %2.s[%c3]" : "+w"(sum) : "w"(b), "w"(a), "i"(L));
  else
    asm("fmla %0.2d, %1.2d, %2.d[%c3]" : "+w"(sum) : "w"(b), "w"(a), "i"(L));
}

// No load passes it: GCC would load the weights of several products at once, and spill sums for
// them.
#define FASTRNN_FENCE asm volatile("" : : : "memory")

// Like `micro`, of so many steps. Of the panel's next one, half of the steps prefetch twice as
// much: no more than a line, since only where there are two tiles of rows or more each prefetches
// its share.
template <class O, int NV, int R, bool Columns>
FASTRNN_INLINE void lane_product(const O* a, int64_t lda, Rows<O> panel, int64_t steps,
                                 const Compute<O>* init, int64_t ld_init, Compute<O>* out,
                                 int64_t ld_out, Ahead ahead) {
  using V = Vec<O>;
  constexpr int kLane = kLanes<O>, kStep = kTerms<O>;
  static_assert(NV * kLane * kStep * sizeof(O) <= kLine);
  static_assert(!Columns || R % kLane == 0);
  V acc[R][NV];
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) acc[r][v] = load<V>(init + r * ld_init + v * kLane);
  }
  // body(v, weights) for the registers of a row of the panel.
  const auto row = [&](auto&& body) __attribute__((always_inline)) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) body(v, load_operands<O>(panel.data + v * kLane * kStep));
    panel.data += panel.ld * kStep;
    FASTRNN_FENCE;
  };
  if constexpr (Columns) {
    for (; steps > 0; --steps) {
      Operands<O> x[R / kLane];
      FASTRNN_UNROLL
      for (int i = 0; i < R / kLane; ++i) x[i] = load_operands<O>(a + i * kLane * kStep);
      row([&](int v, Operands<O> w) __attribute__((always_inline)) {
        FASTRNN_UNROLL
        for (int i = 0; i < R / kLane; ++i)
          each_constant<kLane>([&](auto lane) __attribute__((always_inline)) {
            multiply_add_lane<O, lane>(acc[i * kLane + lane][v], x[i], w);
          });
      });
      a += lda;
    }
  } else {
    const auto run_down = [&](auto&& before) __attribute__((always_inline)) {
      for (; steps >= kLane; steps -= kLane) {
        Operands<O> x[R];
        FASTRNN_UNROLL
        for (int r = 0; r < R; ++r) x[r] = load_operands<O>(a + r * lda);
        each_constant<kLane>([&](auto lane) __attribute__((always_inline)) {
          if (lane % 2 == 0) before();
          row([&](int v, Operands<O> w) __attribute__((always_inline)) {
            FASTRNN_UNROLL
            for (int r = 0; r < R; ++r) multiply_add_lane<O, lane>(acc[r][v], x[r], w);
          });
        });
        a += kLane * kStep;
      }
    };
    if (ahead.stride > 0) {
      run_down([&]() __attribute__((always_inline)) {
        prefetch(ahead.at);
        ahead.move(2 * kStep);
      });
    } else {
      run_down([] {});
    }
    for (; steps > 0; --steps) {
      Operands<O> x[R];
      FASTRNN_UNROLL
      for (int r = 0; r < R; ++r) x[r] = broadcast<O>(a + r * lda);
      row([&](int v, Operands<O> w) __attribute__((always_inline)) {
        FASTRNN_UNROLL
        for (int r = 0; r < R; ++r) multiply_add_lane<O, 0>(acc[r][v], x[r], w);
      });
      a += kStep;
    }
  }
  FASTRNN_UNROLL
  for (int r = 0; r < R; ++r) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) store<V>(out + r * ld_out + v * kLane, acc[r][v]);
  }
}

// out[p, :] = init[p, :] + a[0..k) panel p, for one row and K panels, `stride` apart. With those of
// one panel alone each product would wait for the one before.
template <class O, int NV, int K>
void lane_row(const O* a, const O* panels, int64_t stride, int64_t k, const Compute<O>* init,
              int64_t ld_init, Compute<O>* out) {
  using V = Vec<O>;
  constexpr int kLane = kLanes<O>, kStep = kTerms<O>, kWidth = NV * kLane;
  V acc[K][NV];
  FASTRNN_UNROLL
  for (int p = 0; p < K; ++p) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) acc[p][v] = load<V>(init + p * ld_init + v * kLane);
  }
  for (int64_t i = 0; i < k; i += kStep) {
    const Operands<O> x = broadcast<O>(a + i);
    FASTRNN_UNROLL
    for (int p = 0; p < K; ++p) {
      const O* const w = panels + p * stride;
      FASTRNN_UNROLL
      for (int v = 0; v < NV; ++v)
        multiply_add<O>(acc[p][v], x, load_operands<O>(w + v * kLane * kStep));
      FASTRNN_FENCE;
    }
    panels += kWidth * kStep;
  }
  FASTRNN_UNROLL
  for (int p = 0; p < K; ++p) {
    FASTRNN_UNROLL
    for (int v = 0; v < NV; ++v) store<V>(out + p * kWidth + v * kLane, acc[p][v]);
  }
}

}  // namespace FASTRNN_NAMESPACE
