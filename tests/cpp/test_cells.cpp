// cells.h alone: every backward against finite differences of its forward, in double; and a SIMD
// register against scalars, lane by lane.
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

template <class Cell, class T>
void register_matches_scalars(const char* name) {
  using V = Vec<T>;
  constexpr int kLane = kLanes<T>, kInputs = 2 * Cell::kGates + 4;
  for (int trial = 0; trial < 50; ++trial) {
    T lanes[kInputs][kLane];
    V in[kInputs];
    for (int i = 0; i < kInputs; ++i) {
      for (T& x : lanes[i]) x = uniform<T>(-3, 3);
      in[i] = load<V>(lanes[i]);
    }
    constexpr int G = Cell::kGates;
    V h = in[2 * G], c = in[2 * G + 1], saved[4] = {}, dx[4], du[4], dc = in[2 * G + 3];
    Cell::forward(in, in + G, h, c, saved);
    const V past = Cell::backward(saved, in[2 * G], h, in[2 * G + 1], c, in[2 * G + 2], dc, dx, du);
    for (int l = 0; l < kLane; ++l) {
      T one[kInputs];
      for (int i = 0; i < kInputs; ++i) one[i] = lanes[i][l];
      T h1 = one[2 * G], c1 = one[2 * G + 1], saved1[4] = {}, dx1[4], du1[4], dc1 = one[2 * G + 3];
      Cell::forward(one, one + G, h1, c1, saved1);
      const T past1 =
          Cell::backward(saved1, one[2 * G], h1, one[2 * G + 1], c1, one[2 * G + 2], dc1, dx1, du1);
      const T bound = 32 * std::numeric_limits<T>::epsilon();
      const auto same = [&](T a, T b) { return std::abs(a - b) <= bound * (1 + std::abs(b)); };
      CHECK(same(h[l], h1), "%s h lane %d", name, l);
      CHECK(same(past[l], past1), "%s past lane %d", name, l);
      if (Cell::kKeepsC) CHECK(same(c[l], c1) && same(dc[l], dc1), "%s c lane %d", name, l);
      for (int i = 0; i < Cell::kSaved; ++i)
        CHECK(same(saved[i][l], saved1[i]), "%s saved %d lane %d", name, i, l);
      for (int g = 0; g < G; ++g)
        CHECK(same(dx[g][l], dx1[g]) && same(du[g][l], du1[g]), "%s gate %d lane %d", name, g, l);
    }
  }
}

int main() {
#define X(Cell, name)                          \
  gradients_match_differences<Cell>(name);     \
  register_matches_scalars<Cell, float>(name); \
  register_matches_scalars<Cell, double>(name);
  FASTRNN_CELLS(X)
  return report("test_cells");
}
