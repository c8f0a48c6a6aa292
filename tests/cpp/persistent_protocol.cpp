// The persistent kernels of one cell and dtype, in each of their ways, against loops in double.
// Exit status 0 if all are right in several orders of threads. tests/test_cuda_protocol.py breaks a
// copy of the kernels and expects another status.
#define FASTRNN_EMULATED
#include <cmath>
#include <cstdio>
#include <random>

#include "cuda/device.cuh"
#include "cuda/persistent_backward.cuh"

using namespace fastrnn::cuda;

constexpr int T = 7, N = 5, H = 70, G = 4;
using Numbers = std::vector<float>;

Numbers draw(size_t count, float scale) {
  static std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Numbers numbers(count);
  for (float& x : numbers) x = to_float(to_bfloat16(uniform(random)));
  return numbers;
}
// Rows of `columns` numbers, which lie `pitch` apart.
std::vector<Bfloat16> stored(const Numbers& numbers, int columns, int64_t pitch) {
  std::vector<Bfloat16> rows(numbers.size() / columns * pitch, Bfloat16{0});
  for (size_t i = 0; i < numbers.size(); ++i)
    rows[i / columns * pitch + i % columns] = to_bfloat16(numbers[i]);
  return rows;
}

double worst(const std::vector<Bfloat16>& actual, const std::vector<double>& expected) {
  double error = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(to_float(actual[i]) - expected[i]);
    if (!(difference <= error)) error = difference;  // a NaN stays
    if (std::isnan(error)) break;
  }
  return error;
}

struct Layer {
  int64_t padded = pitch<Bfloat16>(H);
  Numbers x = draw(T * N * G * H, 1), w = draw(G * H * H, 0.2f), h0 = draw(N * H, 1);
  Numbers dy = draw(T * N * H, 1);
  std::vector<double> y = std::vector<double>(T * N * H), c = y, du = std::vector<double>(x.size());
  std::vector<double> gates = du;

  static double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }

  // c0 is zero.
  Layer() {
    for (int n = 0; n < N; ++n)
      for (int t = 0; t < T; ++t)
        for (int j = 0; j < H; ++j) {
          double u[G];
          for (int g = 0; g < G; ++g) {
            u[g] = x[((t * N + n) * G + g) * H + j];
            for (int k = 0; k < H; ++k)
              u[g] +=
                  w[(g * H + j) * H + k] * (t > 0 ? y[((t - 1) * N + n) * H + k] : h0[n * H + k]);
          }
          const size_t at = (t * N + n) * H + j;
          double* const saved = &gates[((t * N + n) * G) * H + j];
          saved[0] = sigmoid(u[0]), saved[H] = sigmoid(u[1]);
          saved[2 * H] = std::tanh(u[2]), saved[3 * H] = sigmoid(u[3]);
          c[at] = saved[H] * (t > 0 ? c[at - N * H] : 0) + saved[0] * saved[2 * H];
          y[at] = saved[3 * H] * std::tanh(c[at]);
        }
    for (int n = 0; n < N; ++n) {
      double dh[H] = {}, dc[H] = {};
      for (int t = T - 1; t >= 0; --t) {
        for (int j = 0; j < H; ++j) {
          const size_t at = (t * N + n) * H + j;
          double saved[G], dx[G], d[G];
          for (int g = 0; g < G; ++g) saved[g] = gates[((t * N + n) * G + g) * H + j];
          Lstm::backward(saved, 0., 0., t > 0 ? c[at - N * H] : 0, c[at], dh[j] + dy[at], dc[j], dx,
                         d);
          for (int g = 0; g < G; ++g) du[((t * N + n) * G + g) * H + j] = d[g];
        }
        for (int k = 0; k < H; ++k) {
          dh[k] = 0;
          for (int row = 0; row < G * H; ++row)
            dh[k] += w[row * H + k] * du[(t * N + n) * G * H + row];
        }
      }
    }
  }
};

Groups groups_of(int units, bool backward) {
  return make_groups(units, /*rows=*/2, G, H, N, backward, sizeof(Bfloat16));
}
LaunchShape shape_of(const Groups& g, size_t shared) {
  LaunchShape shape{static_cast<int>(g.blocks * g.parts), kThreads, shared};
  shape.cluster = g.through_memory() ? 0 : static_cast<int>(g.blocks);
  shape.together = g.through_memory();
  return shape;
}
Sizes sizes() {
  Sizes s{};
  s.steps = T, s.batch = N, s.rows = T * N, s.hidden = s.state = H, s.directions = 1, s.planes = G;
  return s;
}

double forward(const Layer& l, int units, void (*kernel)(Forward, Groups)) {
  const Groups g = groups_of(units, false);
  const auto x = stored(l.x, H, H), w = stored(l.w, H, l.padded);
  auto h = stored(l.h0, H, l.padded);
  std::vector<float> kept(N * H);
  std::vector<Bfloat16> y(T * N * H, Bfloat16{0x7fff}), h_n(N * H);
  std::vector<Bfloat16> ring(ring_size(g, G, H, 1, false, 2), Bfloat16{0});
  Forward f{};
  f.size = sizes();
  f.x = x.data(), f.w_hh = w.data(), f.h = h.data(), f.kept = kept.data();
  f.y = y.data(), f.h_n = h_n.data(), f.ring = ring.data();
  launch(kernel, shape_of(g, persistent_state_bytes(g, G)), nullptr, f, g);
  emulate::synchronize();
  return worst(y, l.y);
}

double backward(const Layer& l, int units, void (*kernel)(Backward, Groups)) {
  const Groups g = groups_of(units, true);
  Numbers transposed(l.w.size()), gates(l.gates.begin(), l.gates.end());
  for (int row = 0; row < G * H; ++row)
    for (int k = 0; k < H; ++k) transposed[k * G * H + row] = l.w[row * H + k];
  const auto w = stored(transposed, H, l.padded), dy = stored(l.dy, H, H);
  const auto saved = stored(gates, H, H), c = stored(Numbers(l.c.begin(), l.c.end()), H, H);
  const std::vector<Bfloat16> c0(N * H, Bfloat16{0});
  std::vector<float> kept(N * H);
  std::vector<Bfloat16> du(l.du.size(), Bfloat16{0x7fff});
  std::vector<Bfloat16> ring(ring_size(g, G, H, 1, true, 2), Bfloat16{0});
  Backward b{};
  b.size = sizes();
  b.dy = dy.data(), b.d_kept = kept.data(), b.w_hh = w.data(), b.c0 = c0.data();
  b.gates = saved.data(), b.cells = c.data(), b.du = du.data(), b.ring = ring.data();
  const size_t shared =
      g.through_memory() ? persistent_state_bytes(g, 1) : persistent_parts_bytes(g, 2, G);
  launch(kernel, shape_of(g, shared), nullptr, b, g);
  emulate::synchronize();
  return worst(du, l.du);
}

int main() {
  const Layer layer;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    emulate::seed(seed);
    const double errors[] = {
        forward(layer, kClusterUnits, persistent_forward<Lstm, Bfloat16, kClusterUnits, false>),
        forward(layer, kGridUnits, persistent_forward<Lstm, Bfloat16, kGridUnits, true>),
        backward(layer, kClusterUnits, persistent_backward<Lstm, Bfloat16, kClusterUnits>),
        backward(layer, kGridUnits, persistent_backward_through_memory<Lstm, Bfloat16>)};
    for (const double error : errors)
      if (!(error < 0.03)) {
        std::printf("seed %d: errors %g %g %g %g\n", static_cast<int>(seed), errors[0], errors[1],
                    errors[2], errors[3]);
        return 1;
      }
  }
}
