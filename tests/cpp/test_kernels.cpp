// The kernels of portable C++, of AVX2 where the machine has it, and of the widest registers
// emulated, with products of pairs and of tiles of Bf16, against loops that use cells.h one number
// at a time, in double. Every array is exactly as long as layer.h says; built for the address and
// undefined-behaviour sanitizers.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_ISA_NAME "emulated 512 bits"
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#include "cpu/isa.h"
#include "cpu/split.h"
#include "cpu/team.h"
#include "cpu/table.h"

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others);  // emulated_tiles.cpp

using fastrnn::Bf16;
namespace fastrnn {
bool operator==(Bf16 a, Bf16 b) { return a.bits == b.bits; }
}  // namespace fastrnn

double number(double x) { return x; }
double number(Bf16 x) { return emulated::load<float>(&x); }
template <class T>
T as(double x) {
  const auto y = static_cast<emulated::Compute<T>>(x);
  T to;
  emulated::store<emulated::Compute<T>>(&to, y);
  return to;
}

struct Shape {
  int64_t T, N, I, H, P, D;
  bool packed, projected, bias;
  bool lengths = false, reset = false;
  int64_t detach_every = 0;
  double grad_clip = 0;
};

template <class T>
using Array = std::vector<T>;

// A layer's tensors, as plain arrays of the exact size.
template <class T>
struct Tensors {
  Array<int64_t> active, offset, place, order;
  std::unique_ptr<bool[]> reset;  // [rows], or null
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
Array<double> random(int64_t count, double scale = 1) {
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
    std::stable_sort(t.order.begin(), t.order.end(),
                     [&](int64_t a, int64_t b) { return length[a] > length[b]; });
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
    t.reset = std::make_unique<bool[]>(rows);
    for (int64_t row = 0; row < rows; ++row) t.reset[row] = uniform() > 0.5;
  }
  const int64_t c = Cell::kState ? s.D * s.N * s.H : 0;
  t.x = random(rows * s.I);
  t.h0 = random(s.D * s.N * s.P);
  t.c0 = random(c);
  t.dy = random(rows * s.D * s.P);
  t.dh_n = random(s.D * s.N * s.P);
  t.dc_n = random(c);
  t.dcells = random(Cell::kState && s.grad_clip > 0 ? s.D * rows * s.H : 0);
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
  t.cells.resize(Cell::kState ? s.D * rows * s.H : 0);
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
        if (!Cell::kState || reset(at)) return 0.0;
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
          if (Cell::kState) t.cells[(d * rows + row) * H + j] = c;
          if (s.projected) t.hidden[(d * rows + row) * H + j] = h;
        }
        for (int64_t p = 0; p < P; ++p) {
          double h = s.projected ? 0 : m[p];
          for (int64_t j = 0; j < H && s.projected; ++j) h += t.w_hr[d][p * H + j] * m[j];
          t.y[row * s.D * P + d * P + p] = h;
        }
      }
      for (int64_t p = 0; p < P; ++p) t.h_n[(d * s.N + n) * P + p] = h_before(path.size(), p);
      for (int64_t j = 0; j < H && Cell::kState; ++j)
        t.c_n[(d * s.N + n) * H + j] = c_before(path.size(), j);

      Array<double> dh(P), dc(H);
      for (int64_t p = 0; p < P; ++p) dh[p] = t.dh_n[(d * s.N + n) * P + p];
      for (int64_t j = 0; j < H && Cell::kState; ++j) dc[j] = t.dc_n[(d * s.N + n) * H + j];
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
          const double c = Cell::kState ? t.cells[(d * rows + row) * H + j] : 0;
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
      for (int64_t j = 0; j < H && Cell::kState; ++j) t.dc0[(d * s.N + n) * H + j] = dc[j];
    }
  }
}

template <class T>
Tensors<T> convert(const Tensors<double>& from) {
  Tensors<T> to;
  to.active = from.active;
  to.offset = from.offset;
  to.place = from.place;
  to.order = from.order;
  const auto copy = [](Array<T>& a, const Array<double>& b) {
    a.resize(b.size());
    std::transform(b.begin(), b.end(), a.begin(), as<T>);
  };
  const auto fresh = [](Array<T>& a, const Array<double>& b) {
    a.assign(b.size(), as<T>(std::nan("")));
  };
  copy(to.x, from.x), copy(to.h0, from.h0), copy(to.c0, from.c0), copy(to.dy, from.dy);
  copy(to.dh_n, from.dh_n), copy(to.dc_n, from.dc_n), copy(to.dcells, from.dcells);
  fresh(to.y, from.y), fresh(to.h_n, from.h_n), fresh(to.c_n, from.c_n);
  fresh(to.gates, from.gates), fresh(to.cells, from.cells), fresh(to.hidden, from.hidden);
  fresh(to.dx, from.dx), fresh(to.dh0, from.dh0), fresh(to.dc0, from.dc0);
  for (int d = 0; d < 2; ++d) {
    copy(to.w_ih[d], from.w_ih[d]), copy(to.w_hh[d], from.w_hh[d]), copy(to.b_ih[d], from.b_ih[d]);
    copy(to.b_hh[d], from.b_hh[d]), copy(to.w_hr[d], from.w_hr[d]);
    fresh(to.dw_ih[d], from.dw_ih[d]), fresh(to.dw_hh[d], from.dw_hh[d]);
    fresh(to.db_ih[d], from.db_ih[d]), fresh(to.db_hh[d], from.db_hh[d]);
    fresh(to.dw_hr[d], from.dw_hr[d]);
  }
  return to;
}

template <class T>
T* pointer(Array<T>& a) {
  return a.empty() ? nullptr : a.data();
}

template <class T>
fastrnn::Backward<T> arguments(const Shape& s, Tensors<T>& t, const bool* reset) {
  fastrnn::Backward<T> b{};
  fastrnn::Forward<T>& f = b.forward;
  const int64_t rows = static_cast<int64_t>(t.x.size()) / s.I;
  const bool ordered = !t.order.empty();
  f.size = {static_cast<int64_t>(t.active.size()),
            s.N,
            s.I,
            s.H,
            s.P,
            s.D,
            rows,
            s.projected,
            t.active.data(),
            t.offset.data(),
            ordered ? t.place.data() : nullptr,
            ordered ? t.order.data() : nullptr};
  f.reset = reset;
  for (int d = 0; d < s.D; ++d) {
    f.weights[d] = {t.w_ih[d].data(), t.w_hh[d].data(), pointer(t.b_ih[d]), pointer(t.b_hh[d]),
                    pointer(t.w_hr[d])};
    b.dweights[d] = {t.dw_ih[d].data(), t.dw_hh[d].data(), pointer(t.db_ih[d]), pointer(t.db_hh[d]),
                     pointer(t.dw_hr[d])};
  }
  f.x = t.x.data(), f.h0 = t.h0.data(), f.c0 = pointer(t.c0);
  f.y = t.y.data(), f.h_n = t.h_n.data(), f.c_n = pointer(t.c_n);
  f.save = true, f.gates = pointer(t.gates), f.cells = pointer(t.cells);
  f.hidden = pointer(t.hidden);
  b.dy = t.dy.data(), b.dh_n = t.dh_n.data(), b.dc_n = pointer(t.dc_n);
  b.dx = t.dx.data(), b.dh0 = t.dh0.data(), b.dc0 = pointer(t.dc0), b.need_weights = true;
  b.dcells = pointer(t.dcells), b.detach_every = s.detach_every;
  b.grad_clip = s.grad_clip;
  return b;
}

template <class T>
void compare(const char* what, const Shape& s, const Tensors<double>& expected,
             const Tensors<T>& got, double tolerance, size_t count) {
  const auto want = expected.results();
  const auto have = got.results();
  for (size_t i = 0; i < count; ++i) {
    const Array<double>& a = *want[i].second;
    double size = 1, error = 0;
    for (size_t k = 0; k < a.size(); ++k) size = std::max(size, std::abs(a[k]));
    for (size_t k = 0; k < a.size(); ++k) {
      const double e = std::abs(number((*have[i].second)[k]) - a[k]);
      error = e <= error ? error : e;  // a NaN wins
    }
    CHECK(error <= tolerance * size, "%s %s T%d N%d I%d H%d P%d D%d%s: error %g", what,
          want[i].first, int(s.T), int(s.N), int(s.I), int(s.H), int(s.P), int(s.D),
          s.packed ? " packed" : "", error);
  }
}

// `threads` shares, run one after the other: what each thread would do, and nothing races. And run
// by as many threads.
fastrnn::Parallel in_turn(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            for (int64_t i = n; i-- > 0;) body(i, context);
          }};
}
fastrnn::Parallel together(int64_t threads) {
  return {threads, [](int64_t n, void (*body)(int64_t, void*), void* context) {
            std::vector<std::jthread> running;
            for (int64_t i = 0; i < n; ++i) running.emplace_back(body, i, context);
          }};
}

template <class T>
void run(const char* name, const Shape& s, const Tensors<double>& expected,
         fastrnn::ForwardKernel<T>* forward, fastrnn::BackwardKernel<T>* backward) {
  // Of a Bf16, four units in the last place of the largest: results are rounded once, gradients
  // come from states and gates that were.
  const double tolerance = std::is_same_v<T, Bf16>    ? 0x1p-6
                           : std::is_same_v<T, float> ? 2e-5
                                                      : 1e-12;
  std::unique_ptr<Tensors<T>> first;
  for (const fastrnn::Parallel& parallel : {in_turn(1), in_turn(3), together(3)}) {
    auto t = std::make_unique<Tensors<T>>(convert<T>(expected));
    fastrnn::Backward<T> b = arguments(s, *t, expected.reset.get());
    forward(b.forward, parallel);
    backward(b, parallel);
    compare(name, s, expected, *t, tolerance, expected.results().size());

    Tensors<T> inference = convert<T>(expected);
    fastrnn::Backward<T> i = arguments(s, inference, expected.reset.get());
    i.forward.save = false;
    i.forward.gates = i.forward.cells = i.forward.hidden = nullptr;
    forward(i.forward, parallel);
    CHECK(inference.y == t->y && inference.h_n == t->h_n && inference.c_n == t->c_n,
          "%s: inference differs from forward", name);
    if (first) {
      const auto a = first->results(), c = t->results();
      for (size_t k = 0; k < a.size(); ++k)
        CHECK(*a[k].second == *c[k].second, "%s %s depends on threads", name, a[k].first);
    } else {
      first = std::move(t);
    }
  }
}

template <class Cell>
void test(const char* name, int position) {
  // Products with more than one block of k, rows that do not fill a tile, units that do not fill a
  // register, more than one chunk of time steps, enough work for several threads.
  const Shape shapes[] = {
      {1, 1, 1, 1, 1, 1, false, false, true},      {1, 3, 5, 17, 17, 2, false, false, false},
      {3, 7, 2, 33, 33, 2, false, false, true},    {5, 2, 200, 9, 9, 1, false, false, true},
      {4, 14, 6, 70, 70, 1, false, false, true},   {2, 13, 611, 20, 20, 2, false, false, true},
      {9, 6, 3, 10, 10, 2, true, false, true},     {40, 9, 4, 21, 21, 2, true, false, false},
      {160, 1, 3, 12, 12, 2, false, false, true},  {3, 1, 40, 130, 130, 1, false, false, true},
      {1, 2, 70, 70, 70, 2, false, false, true},   {1, 35, 40, 21, 21, 1, false, false, true},
      {90, 3, 5, 190, 190, 1, false, false, true},  // units shared by threads
      {3, 53, 70, 40, 40, 1, false, false, true},   // tiles of 32, 16 and 5 rows
  };
  const Shape projected[] = {{1, 2, 3, 18, 5, 1, false, true, true},
                             {6, 5, 4, 19, 7, 2, true, true, true},
                             {4, 13, 9, 40, 33, 2, false, true, false},
                             {7, 5, 4, 19, 7, 2, false, true, true, true, false, 3, 0.4},
                             {6, 4, 4, 19, 7, 1, false, true, true, true, true, 2, 0.5},
                             {1, 3, 20, 40, 33, 2, false, true, true},
                             {1, 5, 20, 40, 9, 1, false, true, true, false, true},
                             {3, 9, 3, 9, 1061, 2, false, true, true}};
  // Lengths, resets, and what these and detaching and clipping do to gradients.
  const Shape features[] = {
      {9, 7, 3, 21, 21, 2, false, false, true, true},
      {11, 6, 5, 17, 17, 1, false, false, true, false, true},
      {11, 5, 4, 20, 20, 2, false, false, true, true, false, 4, 0.3},
      {140, 2, 4, 12, 12, 1, false, false, true, true, true, 3, 0.2},
      {3, 1, 4, 12, 12, 2, false, false, true, true},  // nothing but an empty sequence
      {8, 3, 4, 9, 9, 2, true, false, true, false, false, 3, 0.2},
      {1, 6, 5, 20, 20, 1, false, false, true, false, true, 3, 0.2},
      {1, 6, 5, 20, 20, 2, false, false, true, true},
      {7, 3, 5, 190, 190, 1, false, false, true, false, false, 3, 0.2},
  };
  std::vector<Shape> all(std::begin(shapes), std::end(shapes));
  all.insert(all.end(), std::begin(features), std::end(features));
  if (Cell::kState) all.insert(all.end(), std::begin(projected), std::end(projected));

  static const fastrnn::Kernels tiles = with_emulated_tiles(emulated::kTable);
  std::vector<const fastrnn::Kernels*> tables = {&emulated::kTable, &tiles};
  for (int i = 0; i < fastrnn::cpu::isa_count(); ++i) {
    fastrnn::cpu::isa_select(fastrnn::cpu::isa_name(i));
    tables.push_back(&fastrnn::cpu::kernels());
  }
  for (const Shape& s : all) {
    Tensors<double> expected = make<Cell>(s);
    by_definition<Cell>(s, expected);
    for (const fastrnn::Kernels* k : tables) {
      const std::string what = std::string(k->name) + " " + name;
      run<float>((what + " float").c_str(), s, expected, k->forward_float[position],
                 k->backward_float[position]);
      run<double>((what + " double").c_str(), s, expected, k->forward_double[position],
                  k->backward_double[position]);
      run<Bf16>((what + " bfloat16").c_str(), s, expected, k->forward_bf16[position],
                k->backward_bf16[position]);
    }
  }
}

// Read by the address sanitizer: whatever is allocated starts as NaN.
extern "C" const char* __asan_default_options() {
  return "max_malloc_fill_size=1000000000:malloc_fill_byte=255";
}

int main() {
  int position = 0;
#define X(Cell, name) test<emulated::Cell>(name, position++);
  FASTRNN_CELLS(X)
  return report("test_kernels");
}
