// A layer by its definition, in double: one row, one unit, one number at a time, through cells.h.
// And tensors for it that are exactly as long as layer.h says.
//
// For a test that has included the kernels of `emulated`, whose Bf16 it rounds as.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/halves.h"
#include "layer.h"

using fastrnn::Bf16, fastrnn::F16;
namespace fastrnn {
// As of floats, a zero equals the other one.
inline bool operator==(Bf16 a, Bf16 b) {
  return a.bits == b.bits || ((a.bits | b.bits) & 0x7fff) == 0;
}
}  // namespace fastrnn

inline double number(double x) { return x; }
inline double number(Bf16 x) { return emulated::load<float>(&x); }
inline double number(F16 x) { return emulated::load<float>(&x); }
template <class T>
T as(double x) {
  const auto y = static_cast<emulated::Compute<T>>(x);
  T to;
  emulated::store<emulated::Compute<T>>(&to, y);
  return to;
}

// What a loss reads: everything, or next to nothing.
enum class Loss { kAll, kLastStep, kMiddleStep, kFinalH, kFinalC, kNothing };

struct Shape {
  int64_t T, N, I, H, P, D;
  bool packed, projected, bias;
  bool lengths = false, reset = false;
  int64_t detach_every = 0;
  double grad_clip = 0;
  Loss loss = Loss::kAll;
};

template <class T>
using Array = std::vector<T>;

// A layer's tensors, as plain arrays of the exact size.
template <class T>
struct Tensors {
  Array<int64_t> active, offset, place, order;
  std::shared_ptr<bool[]> reset;  // [rows], or null
  Array<T> x, h0, c0, w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2];
  Array<T> y, h_n, c_n, gates, cells, hidden;
  Array<T> dy, dh_n, dc_n, dcells, dx, dh0, dc0, dw_ih[2], dw_hh[2], db_ih[2], db_hh[2], dw_hr[2];

  // Results in one list, for comparing; gradients of the weights last.
  std::vector<std::pair<const char*, const Array<T>*>> results() const {
    std::vector<std::pair<const char*, const Array<T>*>> list = {
        {"y", &y},           {"h_n", &h_n}, {"c_n", &c_n}, {"gates", &gates}, {"cells", &cells},
        {"hidden", &hidden}, {"dx", &dx},   {"dh0", &dh0}, {"dc0", &dc0}};
    for (int d = 0; d < 2; ++d)
      for (auto entry :
           std::initializer_list<std::pair<const char*, const Array<T>*>>{{"dw_ih", &dw_ih[d]},
                                                                          {"dw_hh", &dw_hh[d]},
                                                                          {"db_ih", &db_ih[d]},
                                                                          {"db_hh", &db_hh[d]},
                                                                          {"dw_hr", &dw_hr[d]}})
        list.push_back(entry);
    return list;
  }
};

// Random numbers that every type holds exactly.
inline Array<double> random(int64_t count, double scale = 1) {
  Array<double> a = uniform_vector<double>(count, scale);
  for (double& x : a) x = number(as<Bf16>(x));
  return a;
}

template <class Cell>
Tensors<double> make(const Shape& s) {
  Tensors<double> t;
  const int64_t G = Cell::kGates;
  int64_t rows = 0;
  const auto add_step = [&](int64_t count) {
    t.active.push_back(count);
    t.offset.push_back(rows);
    rows += count;
  };
  if (s.lengths) {  // of which the first is zero and the last may be
    Array<int64_t> length(s.N);
    for (int64_t n = 0; n < s.N; ++n) length[n] = n * 7919 % (s.T + 1);
    for (int64_t n = 0; n < s.N; ++n) t.order.push_back(n);
    std::sort(t.order.begin(), t.order.end(), [&](int64_t a, int64_t b) {
      return length[a] != length[b] ? length[a] > length[b] : a < b;
    });
    const int64_t longest = length[t.order[0]];
    for (int64_t step = 0; step < longest; ++step) {
      int64_t count = 0;
      for (; count < s.N && length[t.order[count]] > step; ++count)
        t.place.push_back(step * s.N + t.order[count]);
      add_step(count);
    }
    rows = s.T * s.N;
  } else {
    for (int64_t step = 0; step < s.T; ++step)
      add_step(s.packed && step > 0 ? std::max<int64_t>(1, t.active.back() - (uniform() > 0))
                                    : s.N);
  }
  if (s.reset) {
    t.reset.reset(new bool[rows]);
    for (int64_t row = 0; row < rows; ++row) t.reset[row] = uniform() > 0.5;
  }
  const int64_t c = Cell::kKeepsC ? s.D * s.N * s.H : 0;
  t.x = random(rows * s.I);
  t.h0 = random(s.D * s.N * s.P);
  t.c0 = random(c);
  t.dy = random(rows * s.D * s.P);
  t.dh_n = random(s.D * s.N * s.P);
  t.dc_n = random(c);
  t.dcells = random(Cell::kKeepsC && s.grad_clip > 0 ? s.D * rows * s.H : 0);
  if (s.loss != Loss::kAll) {
    const auto steps = static_cast<int64_t>(t.active.size());
    const int64_t read = s.loss == Loss::kLastStep     ? steps - 1
                         : s.loss == Loss::kMiddleStep ? steps / 2
                                                       : steps;
    for (int64_t step = 0, n = 0; step < steps; ++step)
      for (const int64_t end = n + t.active[step]; n < end; ++n)
        if (step != read)
          std::fill_n(&t.dy[(s.lengths ? t.place[n] : n) * s.D * s.P], s.D * s.P, 0.0);
    if (s.loss != Loss::kFinalH) std::fill(t.dh_n.begin(), t.dh_n.end(), 0.0);
    if (s.loss != Loss::kFinalC) std::fill(t.dc_n.begin(), t.dc_n.end(), 0.0);
    std::fill(t.dcells.begin(), t.dcells.end(), 0.0);
  }
  // What is never read, of the arrays that cover padding.
  std::vector<bool> owned(rows, !s.lengths);
  for (const int64_t row : t.place) owned[row] = true;
  for (int64_t row = 0; row < rows; ++row)
    if (!owned[row]) {
      std::fill_n(&t.x[row * s.I], s.I, std::nan(""));
      std::fill_n(&t.dy[row * s.D * s.P], s.D * s.P, std::nan(""));
    }
  t.y.resize(t.dy.size());
  t.h_n.resize(t.h0.size());
  t.c_n.resize(c);
  t.gates.resize(s.D * rows * Cell::kSaved * s.H);
  t.cells.resize(Cell::kKeepsC ? s.D * rows * s.H : 0);
  t.hidden.resize(s.projected ? s.D * rows * s.H : 0);
  t.dx.resize(t.x.size());
  t.dh0.resize(t.h0.size());
  t.dc0.resize(c);
  const double scale = 1 / std::sqrt(static_cast<double>(s.H));
  for (int64_t d = 0; d < s.D; ++d) {
    t.w_ih[d] = random(G * s.H * s.I, scale);
    t.w_hh[d] = random(G * s.H * s.P, scale);
    if (s.bias) t.b_ih[d] = random(G * s.H, scale);
    if (s.bias) t.b_hh[d] = random(G * s.H, scale);
    if (s.projected) t.w_hr[d] = random(s.P * s.H, scale);
    t.dw_ih[d].resize(t.w_ih[d].size());
    t.dw_hh[d].resize(t.w_hh[d].size());
    t.db_ih[d].resize(t.b_ih[d].size());
    t.db_hh[d].resize(t.b_hh[d].size());
    t.dw_hr[d].resize(t.w_hr[d].size());
  }
  // The derivative of a ReLU jumps at 0, where rounding may choose either side: the first input is
  // constant and drives every unit clearly on or off.
  for (int64_t d = 0; d < s.D && std::is_same_v<Cell, emulated::RnnRelu>; ++d) {
    for (Array<double>* w : {&t.w_ih[d], &t.w_hh[d], &t.b_ih[d], &t.b_hh[d]})
      for (double& x : *w) x /= 16;
    for (int64_t row = 0; row < rows; ++row)
      if (owned[row]) t.x[row * s.I] = 1;
    for (int64_t j = 0; j < s.H; ++j) t.w_ih[d][j * s.I] = t.w_ih[d][j * s.I] < 0 ? -3 : 3;
  }
  return t;
}

// The definition: one row, one unit, one number at a time.
template <class Cell>
void by_definition(const Shape& s, Tensors<double>& t) {
  constexpr int64_t G = Cell::kGates, S = Cell::kSaved;
  const int64_t H = s.H, P = s.P, I = s.I, rows = static_cast<int64_t>(t.x.size()) / I;
  for (int64_t d = 0; d < s.D; ++d) {
    const auto bias = [&](const Array<double>& b, int64_t i) { return b.empty() ? 0 : b[i]; };
    for (int64_t i = 0; i < s.N; ++i) {
      const int64_t n = s.lengths ? t.order[i] : i;
      Array<int64_t> path;   // rows of the matrices that this batch entry visits, in order
      Array<int64_t> times;  // and when
      for (int64_t step = 0; step < static_cast<int64_t>(t.active.size()); ++step)
        if (i < t.active[step]) {
          path.push_back(s.lengths ? step * s.N + n : t.offset[step] + i);
          times.push_back(step);
        }
      if (d == 1) std::reverse(path.begin(), path.end());
      if (d == 1) std::reverse(times.begin(), times.end());
      const auto reset = [&](size_t at) {
        return at < path.size() && s.reset && t.reset[path[at]];
      };
      const auto h_before = [&](size_t at, int64_t p) {
        if (reset(at)) return 0.0;
        return at == 0 ? t.h0[(d * s.N + n) * P + p] : t.y[path[at - 1] * s.D * P + d * P + p];
      };
      const auto c_before = [&](size_t at, int64_t j) {
        if (!Cell::kKeepsC || reset(at)) return 0.0;
        return at == 0 ? t.c0[(d * s.N + n) * H + j] : t.cells[(d * rows + path[at - 1]) * H + j];
      };
      for (size_t at = 0; at < path.size(); ++at) {
        const int64_t row = path[at];
        Array<double> m(H);
        for (int64_t j = 0; j < H; ++j) {
          double x[G], u[G], saved[8], h = s.projected ? 0 : h_before(at, j), c = c_before(at, j);
          for (int64_t g = 0; g < G; ++g) {
            x[g] = bias(t.b_ih[d], g * H + j);
            u[g] = bias(t.b_hh[d], g * H + j);
            for (int64_t i = 0; i < I; ++i)
              x[g] += t.w_ih[d][(g * H + j) * I + i] * t.x[row * I + i];
            for (int64_t p = 0; p < P; ++p)
              u[g] += t.w_hh[d][(g * H + j) * P + p] * h_before(at, p);
          }
          Cell::forward(x, u, h, c, saved);
          m[j] = h;
          for (int64_t i = 0; i < S; ++i) t.gates[((d * rows + row) * S + i) * H + j] = saved[i];
          if (Cell::kKeepsC) t.cells[(d * rows + row) * H + j] = c;
          if (s.projected) t.hidden[(d * rows + row) * H + j] = h;
        }
        for (int64_t p = 0; p < P; ++p) {
          double h = s.projected ? 0 : m[p];
          for (int64_t j = 0; j < H && s.projected; ++j) h += t.w_hr[d][p * H + j] * m[j];
          t.y[row * s.D * P + d * P + p] = h;
        }
      }
      for (int64_t p = 0; p < P; ++p) t.h_n[(d * s.N + n) * P + p] = h_before(path.size(), p);
      for (int64_t j = 0; j < H && Cell::kKeepsC; ++j)
        t.c_n[(d * s.N + n) * H + j] = c_before(path.size(), j);

      Array<double> dh(P), dc(H);
      for (int64_t p = 0; p < P; ++p) dh[p] = t.dh_n[(d * s.N + n) * P + p];
      for (int64_t j = 0; j < H && Cell::kKeepsC; ++j) dc[j] = t.dc_n[(d * s.N + n) * H + j];
      for (size_t at = path.size(); at-- > 0;) {
        const int64_t row = path[at];
        for (int64_t p = 0; p < P; ++p) dh[p] += t.dy[row * s.D * P + d * P + p];
        Array<double> dm = dh, before(P);
        if (s.projected) {
          dm.assign(H, 0);
          for (int64_t p = 0; p < P; ++p)
            for (int64_t j = 0; j < H; ++j) {
              dm[j] += dh[p] * t.w_hr[d][p * H + j];
              t.dw_hr[d][p * H + j] += dh[p] * t.hidden[(d * rows + row) * H + j];
            }
        }
        for (int64_t j = 0; j < H; ++j) {
          double saved[8], dx[G], du[G];
          for (int64_t i = 0; i < S; ++i) saved[i] = t.gates[((d * rows + row) * S + i) * H + j];
          const double h = s.projected ? 0 : t.y[row * s.D * P + d * P + j];
          const double c = Cell::kKeepsC ? t.cells[(d * rows + row) * H + j] : 0;
          if (!t.dcells.empty()) dc[j] += t.dcells[(d * rows + row) * H + j];
          const double past = Cell::backward(saved, s.projected ? 0 : h_before(at, j), h,
                                             c_before(at, j), c, dm[j], dc[j], dx, du);
          if (!s.projected) before[j] += past;
          for (int64_t g = 0; g < G; ++g) {
            const int64_t k = g * H + j;
            for (int64_t i = 0; i < I; ++i) {
              t.dx[row * I + i] += dx[g] * t.w_ih[d][k * I + i];
              t.dw_ih[d][k * I + i] += dx[g] * t.x[row * I + i];
            }
            for (int64_t p = 0; p < P; ++p) {
              before[p] += du[g] * t.w_hh[d][k * P + p];
              t.dw_hh[d][k * P + p] += du[g] * h_before(at, p);
            }
            if (s.bias) t.db_ih[d][k] += dx[g];
            if (s.bias) t.db_hh[d][k] += du[g];
          }
        }
        const bool boundary = s.detach_every > 0 && at > 0 &&
                              times[at] / s.detach_every != times[at - 1] / s.detach_every;
        for (double& b : before)
          if (s.grad_clip > 0) b = std::clamp(b, -s.grad_clip, s.grad_clip);
        if (reset(at) || boundary) before.assign(P, 0);
        if (reset(at) || boundary) dc.assign(H, 0);
        dh = before;
      }
      for (int64_t p = 0; p < P; ++p) t.dh0[(d * s.N + n) * P + p] = dh[p];
      for (int64_t j = 0; j < H && Cell::kKeepsC; ++j) t.dc0[(d * s.N + n) * H + j] = dc[j];
    }
  }
}
