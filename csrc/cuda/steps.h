// What a loop over time is to the CUDA kernels: plain sizes and pointers, no torch, no CUDA.
//
// T time steps, N batch, H hidden size, P size of h (the projection's, or H), D directions, G gates
// and S saved planes of the cell (cells.h). Elements are of the layer's dtype unless a comment says
// `wide`: float, or double where the dtype is double. Matrices are dense and row-major but for
// pitches: a row of `pitch(K)` elements is K of them and zeros up to a multiple of 16 bytes.
// Step i of direction 0 is time i, of direction 1 time T - 1 - i. The rows of time t are row
// offsets[t] + n of every [rows, ...] matrix, t N + n where there are no offsets; row n of the
// batch is active at the times t < lengths[n], and rows at other times are neither read nor
// written.
#pragma once

#include <cstdint>

namespace fastrnn::cuda {

struct Sizes {
  int64_t steps, batch, rows;         // T, N, rows of the matrices
  int64_t hidden, state, directions;  // H, P, D
  int64_t planes;                     // G
  const int64_t* lengths;             // [N] or null: all T
  const int64_t* offsets;             // [T] or null: t N
  const bool* reset;                  // [T, N] or null: whether the state is zero before the step
};

// What the launches of a loop hand to each other: `h` and `m`, in Backward `sent` and `sent_state`,
// and what is kept.
struct Forward {
  Sizes size;
  bool projected;    // the cell's output goes to m, and a second launch projects it
  const void* x;     // [rows, D, G, H] input part of the pre-activations
  const void* w_hh;  // [D, G, H, pitch(P)]
  const void* b_hh;  // [D, G, H] or null
  const void* w_hr;  // [D, P, pitch(H)] or null
  void* h;           // [2, D, N, pitch(P)] h_{t-1} and h_t in turn; both begin as h0; in the
                     // persistent schedule h0 alone
  void* m;           // [D, N, pitch(H)] o tanh(c) of a projected layer, or null; begins as zeros
  void* kept;        // [D, N, H] wide: c, or h of a cell that reads it; initial, then final; null
  void* y;           // [rows, D, P]
  void* h_n;         // [D, N, P] begins as h0, for rows without a step
  void* gates;       // [D, rows, S, H] or null, like the two that follow, where not wanted
  void* cells;       // [D, rows, H]
  void* hidden;      // [D, rows, H] as m
  void* ring;        // persistent schedule, through memory: [groups, 2, kGroupRows, pitch(H)] zeros
  const void* sums;  // library schedule: wide, [D, N, G, H] of h_{t-1} w_hh^T or [D, N, P] of
                     // m w_hr^T; its rows for inactive or reset states are ignored
};

struct Backward {
  Sizes size;
  bool projected;        // a first launch makes dh, a second multiplies it with w_hr for the cell
  int64_t detach_every;  // no gradient crosses a time that is a multiple of it; 0: all do
  double grad_clip;      // limit of the gradient sent to h of the step before; 0: none
  const void* dy;        // [rows, D, P] given gradients, like the two that follow; null: zero
  const void* dh_n;      // [D, N, P]
  const void* d_cells;   // [D, rows, H]
  void* d_kept;          // [D, N, H] wide: the gradient of `kept`, of the final one, then of the
                         // initial one without what goes through w_hh; null as `kept`
  const void* w_hh;      // [D, P, pitch(G H)], transposed; in the persistent schedule [D, P, G,
                         // pitch(H)]
  const void* w_hr;      // [D, H, pitch(P)], transposed, or null
  const void* h0;        // [D, N, P]
  const void* c0;        // [D, N, H] or null
  const void* y;         // [rows, D, P]
  const void* gates;     // [D, rows, S, H]
  const void* cells;     // [D, rows, H] or null
  void* dx;              // [rows, D, G, H] gradient of the input part; null: equals du
  void* du;              // [rows, D, G, H] gradient of the hidden part
  void* d_state;         // [rows, D, P] gradient of each h of a projected layer, complete, or null
  void* sent;            // [2, D, N, pitch(G H)] du of this step and of the one after, in turn
  void* ring;            // as in Forward, of pitch(H) for each gate
  void* sent_state;      // [D, N, pitch(P)] d_state of this step, or null; both begin as zeros
  const void* sums;  // library schedule: wide, [D, N, P] of du w_hh or [D, N, H] of d_state w_hr
};

// The launches of a step. Only a projected layer has two: in a forward step first the cell and then
// the projection, in a backward step first dh and then the cell.
enum class Part { kCell, kState };

}  // namespace fastrnn::cuda
