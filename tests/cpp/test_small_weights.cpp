// Streams of small weights in each instruction set that the CPU offers, and with products that are
// emulated, bit for bit against plain loops. A unit of RnnRelu shows the sum of a product: of int8
// it is exact, and halves are powers of two here, of which no sum is rounded.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 16
#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/isa.h"

using fastrnn::Format;

fastrnn::Kernels with_emulated_dpbusd(const fastrnn::Kernels& others);
fastrnn::Kernels with_emulated_sdot(const fastrnn::Kernels& others);
fastrnn::Kernels with_emulated_byte_tiles(const fastrnn::Kernels& others, bool tiles);
int64_t emulated_tile_work();  // how often they were set up, and products, until now
bool emulated_byte_tiles_in_use();

constexpr int kRelu = 3;  // its position in the list of cells

struct Size {
  int64_t N, I, H;
  int wide_tiles = 0, narrow_tiles = 0;  // of rows, where activations have 16 bits and 8

  // What tiles do in a step: they are set up for each of two weights, and multiply 16 units by 64
  // terms at once. Units come in fours of registers.
  int64_t work(bool wide) const {
    const int64_t columns = (H + 63) / 64 * 4, depth = (I + 63) / 64 + (H + 63) / 64;
    const int tiles = wide ? 2 * wide_tiles : narrow_tiles;
    return tiles ? 2 + columns * depth * tiles : 0;
  }
};

struct Problem {
  Size s;
  std::vector<float> x, h, bias, y, expected;
  std::vector<float> w_ih, w_hh;  // what the weights stand for, times their scale
  std::vector<float> scale;

  Problem(Size size, bool most) : s(size) {
    const auto whole = [&](int64_t count) {
      std::vector<float> v(count);
      for (float& w : v) w = most ? 127.0f : std::round(uniform<float>(-127, 127));
      return v;
    };
    w_ih = whole(s.H * s.I), w_hh = whole(s.H * s.H);
    scale = uniform_vector<float>(s.H), bias = uniform_vector<float>(s.H);
    x = uniform_vector<float>(s.N * s.I, 30), h = uniform_vector<float>(s.N * s.H, 3);
    if (most) std::fill(x.begin(), x.end(), -0.7f);
    y.resize(s.N * s.H), expected.resize(s.N * s.H);
  }

  // Steps of the stream of these weights, `together` to a call; returns the last state.
  std::vector<float> run(const fastrnn::Kernels& kernels, Format format, bool wide, const void* ih,
                         const void* hh, int64_t calls = 1, int64_t together = 1) {
    const int64_t active = s.N, offset = 0;
    std::vector<float> state = h;
    fastrnn::Forward<float> f{};
    f.size = {1, s.N, s.I, s.H, s.H, 1, s.N, false, &active, &offset, nullptr, nullptr};
    f.weights[0].b_ih = f.weights[0].b_hh = bias.data();
    f.h0 = f.h_n = state.data();
    const std::unique_ptr<fastrnn::Stream> stream(kernels.small_stream[kRelu](
        f, {{ih, scale.data(), format}, {hh, scale.data(), format}, {}, wide}));
    for (int64_t call = 0; call < calls; ++call) {
      f.x = x.data() + call * together * s.N * s.I;
      f.y = y.data() + call * together * s.N * s.H;
      stream->steps(together);
    }
    return state;
  }

  void check(const fastrnn::Kernels& kernels, Format format, bool wide, const void* ih,
             const void* hh) {
    const std::vector<float> state = run(kernels, format, wide, ih, hh);
    const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    for (size_t i = 0; i < y.size(); ++i)
      CHECK(same(y[i], expected[i]) && same(state[i], y[i]),
            "%s format %d wide %d N%d I%d H%d at %d: %.9g, expected %.9g", kernels.name,
            int(format), wide, int(s.N), int(s.I), int(s.H), int(i), y[i], expected[i]);
  }

  void bytes(const fastrnn::Kernels& kernels, bool wide) {
    const auto part = [&](const std::vector<float>& left, const std::vector<float>& w, int64_t k,
                          int64_t n, int64_t unit) {
      const int64_t room = std::numeric_limits<int32_t>::max() / (127 * k);
      const float units = static_cast<float>(wide ? std::min<int64_t>(32767, room) : 127);
      float most = 0;
      for (int64_t i = 0; i < k; ++i) most = std::max(most, std::abs(left[n * k + i]));
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i)
        sum += static_cast<int64_t>(std::nearbyint(left[n * k + i] * (units / most))) *
               static_cast<int64_t>(w[unit * k + i]);
      CHECK(sum == int32_t(sum), "a sum of %lld", static_cast<long long>(sum));
      return bias[unit] + static_cast<float>(sum) * scale[unit] * (most / units);
    };
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t unit = 0; unit < s.H; ++unit)
        expected[n * s.H + unit] =
            std::max(part(x, w_ih, s.I, n, unit) + part(h, w_hh, s.H, n, unit), 0.0f);
    const std::vector<int8_t> ih(w_ih.begin(), w_ih.end()), hh(w_hh.begin(), w_hh.end());
    check(kernels, Format::kInt8, wide, ih.data(), hh.data());
    // What is not finite stays in its row.
    x[(s.N - 1) * s.I] = wide ? INFINITY : NAN;
    std::fill(expected.end() - s.H, expected.end(), NAN);
    check(kernels, Format::kInt8, wide, ih.data(), hh.data());
  }

  // Numbers 2^k and activations that are whole: k from the least half on, below the normal ones.
  void halves(const fastrnn::Kernels& kernels, Format format) {
    std::vector<uint16_t> bits[2];
    for (std::vector<float>* v : {&x, &h, &bias})
      for (float& a : *v) a = std::round(a);
    const std::vector<float>* const old[] = {&w_ih, &w_hh};
    std::vector<float> numbers[2];
    for (int m = 0; m < 2; ++m)
      for (const float w : *old[m]) {
        const int k = std::abs(int(w)) % 12 - 24 + 2 * m;  // of m = 0 from 2^-24 on
        const uint16_t sign = w < 0 ? 0x8000 : 0;
        numbers[m].push_back(std::ldexp(sign ? -1.0f : 1.0f, k));
        bits[m].push_back(sign | (format == Format::kBf16 ? (127 + k) << 7
                                  : k >= -14              ? (15 + k) << 10
                                                          : 1 << (24 + k)));
      }
    for (float& b : bias) b = 0;
    for (int64_t n = 0; n < s.N; ++n)
      for (int64_t unit = 0; unit < s.H; ++unit) {
        float sum = 0;
        for (int64_t i = 0; i < s.I; ++i) sum += x[n * s.I + i] * numbers[0][unit * s.I + i];
        for (int64_t i = 0; i < s.H; ++i) sum += h[n * s.H + i] * numbers[1][unit * s.H + i];
        expected[n * s.H + unit] = std::max(sum, 0.0f);
      }
    check(kernels, format, true, bits[0].data(), bits[1].data());
  }
};

// Of more rows than one read serves, in several steps and one at a time.
void check_steps(const fastrnn::Kernels& kernels, bool wide) {
  constexpr int64_t kSteps = 11;
  Problem p({3, 70, 37}, false);
  for (float& s : p.scale) s *= 1e-3f;
  p.x = uniform_vector<float>(kSteps * p.s.N * p.s.I), p.y.resize(kSteps * p.s.N * p.s.H);
  const std::vector<int8_t> ih(p.w_ih.begin(), p.w_ih.end()), hh(p.w_hh.begin(), p.w_hh.end());
  p.run(kernels, Format::kInt8, wide, ih.data(), hh.data(), kSteps, 1);
  const std::vector<float> one_by_one = p.y;
  p.run(kernels, Format::kInt8, wide, ih.data(), hh.data(), 1, kSteps);
  CHECK(p.y == one_by_one && std::isfinite(p.y.back()), "%s: steps of wide %d", kernels.name, wide);
}

void check_all(const fastrnn::Kernels& kernels, bool tiles = false) {
  for (const Size s : {Size{1, 3, 5}, Size{1, 64, 128}, Size{2, 40, 66}, Size{3, 67, 37},
                       Size{4, 1100, 20, 1}, Size{5, 130, 64, 1, 1}, Size{7, 21, 133, 1, 1},
                       Size{16, 64, 128, 1, 1}, Size{18, 67, 37, 1, 2}, Size{20, 5, 200, 2, 2},
                       Size{36, 129, 16, 3, 2}, Size{37, 40, 66, 3, 3}}) {
    for (const bool wide : {true, false})
      for (const bool most : {true, false}) {
        const int64_t before = emulated_tile_work();
        Problem(s, most).bytes(kernels, wide);
        const int64_t work = emulated_tile_work() - before;
        CHECK(work == (tiles ? 2 * s.work(wide) : 0), "%d of tiles, N%d wide %d", int(work),
              int(s.N), wide);
        CHECK(!emulated_byte_tiles_in_use(), "tiles are not released");
      }
    const int64_t before = emulated_tile_work();
    for (const Format format : {Format::kBf16, Format::kF16}) {
      const Size small{s.N, std::min<int64_t>(s.I, 67), s.H};  // sums that are exact
      Problem(small, false).halves(kernels, format);
    }
    CHECK(emulated_tile_work() == before, "tiles for what is no int8");
  }
  for (const bool wide : {true, false}) check_steps(kernels, wide);
}

// From how many rows on.
void check_rule() {
  using fastrnn::cpu::byte_tiles_pay;
  for (int rows = 0; rows < 70; ++rows) {
    CHECK(byte_tiles_pay(rows, true) == (rows >= 4), "%d rows of 16 bits", rows);
    CHECK(byte_tiles_pay(rows, false) == (rows >= 5), "%d rows of 8 bits", rows);
  }
}

int main() {
  for (int i = 0; i < fastrnn::cpu::isa_count(); ++i) {
    fastrnn::cpu::isa_select(fastrnn::cpu::isa_name(i));
    check_all(fastrnn::cpu::kernels());
  }
  check_all(with_emulated_dpbusd(fastrnn::cpu::kernels()));
  check_all(with_emulated_sdot(fastrnn::cpu::kernels()));
  for (const bool tiles : {true, false})
    check_all(with_emulated_byte_tiles(fastrnn::cpu::kernels(), tiles), tiles);
  check_rule();
  return report("test_small_weights");
}
