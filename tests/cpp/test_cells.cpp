// cells.h alone: every backward against finite differences of its forward, in double; and SIMD
// registers, one or several together, against scalars, lane by lane and bit by bit.
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE cells
#define FASTRNN_BYTES 32
#include "cpu/activations.h"
//
#include "cells.h"

using namespace cells;

// One step as a function of everything it reads: x, u, h, c -> h, c.
template <class Cell>
struct Inputs {
  double x[Cell::kGates], u[Cell::kGates], h, c;

  double* begin() { return x; }
  static constexpr int kCount = 2 * Cell::kGates + 2;
};

// w_h h_t + w_c c_t
template <class Cell>
double loss(const Inputs<Cell>& in, double w_h, double w_c) {
  double h = in.h, c = in.c, saved[8];
  Cell::forward(in.x, in.u, h, c, saved);
  return w_h * h + (Cell::kKeepsC ? w_c * c : 0);
}

template <class Cell>
void gradients_match_differences(const char* name) {
  for (int trial = 0; trial < 200; ++trial) {
    Inputs<Cell> in;
    for (int i = 0; i < Inputs<Cell>::kCount; ++i) in.begin()[i] = uniform(-2, 2);
    const double w_h = uniform(), w_c = Cell::kKeepsC ? uniform() : 0;

    double h = in.h, c = in.c, saved[8], dx[4], du[4], dc = w_c;
    Cell::forward(in.x, in.u, h, c, saved);
    const double past = Cell::backward(saved, in.h, h, in.c, c, w_h, dc, dx, du);

    Inputs<Cell> gradient;
    for (int g = 0; g < Cell::kGates; ++g) {
      gradient.x[g] = dx[g];
      gradient.u[g] = du[g];
    }
    gradient.h = past;
    gradient.c = Cell::kKeepsC ? dc : 0;
    bool split = false;
    for (int g = 0; g < Cell::kGates; ++g) split = split || dx[g] != du[g];
    CHECK(split == Cell::kSplit, "%s", name);
    for (int i = 0; i < Inputs<Cell>::kCount; ++i) {
      const double step = 1e-5;
      Inputs<Cell> more = in, less = in;
      more.begin()[i] += step;
      less.begin()[i] -= step;
      const double slope = (loss(more, w_h, w_c) - loss(less, w_h, w_c)) / (2 * step);
      CHECK(std::abs(slope - gradient.begin()[i]) < 1e-9, "%s input %d: %.12g, differences %.12g",
            name, i, gradient.begin()[i], slope);
    }
  }
}

// What a step computes of x, u, h, c and the gradients of h and c.
template <class Cell, class V>
struct Outputs {
  V h, c, saved[4] = {}, dx[4] = {}, du[4] = {}, past, dc;

  explicit Outputs(const V* in) : h(in[2 * Cell::kGates]), c(in[2 * Cell::kGates + 1]) {
    constexpr int G = Cell::kGates;
    Cell::forward(in, in + G, h, c, saved);
    dc = in[2 * G + 3];
    past = Cell::backward(saved, in[2 * G], h, in[2 * G + 1], c, in[2 * G + 2], dc, dx, du);
  }
  const V* begin() const { return &h; }
  static constexpr int kCount = 2 + 3 * 4 + 2;
};

template <class Cell, class T, int R>
void registers_match_scalars(const char* name) {
  using V = Vec<T>;
  constexpr int kLane = kLanes<T>, kInputs = 2 * Cell::kGates + 4;
  for (int trial = 0; trial < 50; ++trial) {
    T lanes[kInputs][R * kLane];
    V in[R][kInputs];
    Many<V, R> together[kInputs];
    for (int i = 0; i < kInputs; ++i) {
      for (T& x : lanes[i]) x = uniform<T>(-3, 3);
      for (int r = 0; r < R; ++r) in[r][i] = together[i].v[r] = load<V>(lanes[i] + r * kLane);
    }
    const Outputs<Cell, Many<V, R>> many(together);
    for (int r = 0; r < R; ++r) {
      const Outputs<Cell, V> one(in[r]);
      for (int l = 0; l < kLane; ++l) {
        T scalars[kInputs];
        for (int i = 0; i < kInputs; ++i) scalars[i] = lanes[i][r * kLane + l];
        const Outputs<Cell, T> scalar(scalars);
        for (int i = 0; i < scalar.kCount; ++i) {
          const T expected = scalar.begin()[i];
          CHECK(one.begin()[i][l] == expected, "%s output %d lane %d", name, i, l);
          CHECK(many.begin()[i].v[r][l] == expected, "%s output %d of %d", name, i, R);
        }
      }
    }
  }
}

int main() {
#define X(Cell, name)                            \
  gradients_match_differences<Cell>(name);       \
  registers_match_scalars<Cell, float, 1>(name); \
  registers_match_scalars<Cell, float, 3>(name); \
  registers_match_scalars<Cell, float, 4>(name); \
  registers_match_scalars<Cell, double, 2>(name);
  FASTRNN_CELLS(X)
  return report("test_cells");
}
