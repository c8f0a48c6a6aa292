// Products of floats in parts, with emulated tiles: that the parts of a float are its sum, that
// sums are at least as near as those of FMAs, and that a number which has no parts is noticed and
// the layer computed without them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#define FASTRNN_TILES
#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/isa.h"
#include "cpu/panels.h"
#include "cpu/split.h"
#include "cpu/zeros.h"
#include "tensors.h"
#include "together.h"

using emulated::Parts;
using fastrnn::cpu::run_backward, fastrnn::cpu::run_forward;

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others);  // emulated_tiles.cpp

constexpr int kCells = 0
#define X(Cell, name) +1
    FASTRNN_CELLS(X)
#undef X
    ;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The parts of floats of every exponent that parts have bits for; each is a Bf16 by its type.
void test_sum() {
  for (int exponent = -109; exponent < 128; ++exponent)
    for (int i = 0; i < 50; ++i) {
      float numbers[16], sums[16] = {};
      for (float& x : numbers) {
        x = std::ldexp(uniform<float>(1, 2), exponent) * (uniform() > 0 ? 1.0f : -1.0f);
        if (std::abs(x) > 3.38e38f) x = 3.38e38f;
      }
      Parts row[emulated::kGrain<Parts>];
      const int64_t half = i % 2 * 16;
      emulated::store_parts(row, half, emulated::load<emulated::Vec<float>>(numbers));
      const Bf16* const parts = reinterpret_cast<const Bf16*>(row) + half;
      for (int part = emulated::kParts - 1; part >= 0; --part)
        for (int l = 0; l < 16; ++l)
          sums[l] += emulated::load<float>(parts + part * emulated::kGrain<Parts> + l);
      for (int l = 0; l < 16; ++l)
        CHECK(sums[l] == numbers[l], "%a is not the sum %a", numbers[l], sums[l]);
    }
}

struct Error {
  double most = 0, squares = 0;
  void add(double error) {
    most = std::max(most, std::abs(error));
    squares += error * error;
  }
};

// Numbers of a product: plain ones, of many magnitudes in a row, or such that terms cancel.
enum class Data { kPlain, kScaled, kCancelling };
float draw(Data data) {
  const float x = uniform<float>();
  return data == Data::kScaled ? std::ldexp(x, static_cast<int>(uniform(-12, 12))) : x;
}

template <bool Transposed>
void test_product(int64_t m, int64_t k, int64_t n, Data data) {
  std::vector<float> a(m * k), w(k * n), init(emulated::round_up(n, 64));
  std::generate(a.begin(), a.end(), [&] { return draw(data); });
  std::generate(w.begin(), w.end(), [&] { return draw(data); });
  const auto weight = [&](int64_t i, int64_t j) -> float& {
    return w[Transposed ? j * k + i : i * n + j];
  };
  for (int64_t i = 1; i < k && data == Data::kCancelling; i += 2)
    for (int64_t j = 0; j < n; ++j) weight(i, j) = weight(i - 1, j);
  for (int64_t r = 0; r < m && data == Data::kCancelling; ++r)
    for (int64_t i = 1; i < k; i += 2) a[r * k + i] = -a[r * k + i - 1] * uniform<float>(0.999, 1);
  const int64_t ld = emulated::round_up(k, 32);
  std::vector<Parts> left(m * ld);
  for (int64_t r = 0; r < m; ++r) {
    emulated::clear_beyond(&left[r * ld], k);
    emulated::copy(&left[r * ld], &a[r * k], k);
  }
  const emulated::Multiplying<Parts> multiplying;
  emulated::Panels<float, Parts, 4, 1, Transposed> panels(w.data(), k, n, true);
  Error parts, fused;
  for (int64_t p = 0; p < panels.count(); ++p) {
    panels.keep(p);
    std::vector<float> out(m * 64, std::nanf(""));
    emulated::multiply<Parts, 4>(left.data(), ld, m, k, panels.get(p), nullptr, init.data(), 0,
                                 out.data(), 64);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t j = p * 64; j < std::min(n, p * 64 + 64); ++j) {
        double exact = 0;
        float sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          exact += double(a[r * k + i]) * weight(i, j);
          sum = std::fma(a[r * k + i], weight(i, j), sum);
        }
        parts.add(out[r * 64 + j - p * 64] - exact);
        fused.add(sum - exact);
      }
  }
  // Of a short sum, or one whose terms cancel as they come, the products that are left out are the
  // most of it.
  const bool few = k < 128;
  const double most = few || data == Data::kCancelling ? 4 : 1, squares = !few     ? 1
                                                                          : m < 16 ? 3
                                                                                   : 1.5;
  CHECK(parts.most <= most * fused.most && parts.squares <= squares * fused.squares,
        "%d x %d x %d, data %d: error %g, rms %g; of FMAs %g, %g", int(m), int(k), int(n),
        int(data), parts.most, std::sqrt(parts.squares / m / n), fused.most,
        std::sqrt(fused.squares / m / n));
}

// A layer whose numbers fill all bits of a float.
template <class Cell>
Tensors<double> full(const Shape& s) {
  Tensors<double> t = make<Cell>(s);
  const auto fill = [](Array<double>& a) {
    for (double& x : a) x = static_cast<float>(x * uniform(0.9, 1));
  };
  fill(t.x), fill(t.h0), fill(t.c0), fill(t.dy), fill(t.dh_n), fill(t.dc_n);
  for (int64_t d = 0; d < s.D; ++d)
    fill(t.w_ih[d]), fill(t.w_hh[d]), fill(t.b_ih[d]), fill(t.b_hh[d]), fill(t.w_hr[d]);
  return t;
}

// The errors of a layer's results, those of FMAs beside them.
template <class Cell>
void test_layer(const char* name, int position, const fastrnn::Kernels& tiles) {
  const fastrnn::Kernels& plain = fastrnn::cpu::kernels();
  for (const Shape& s : {Shape{9, 16, 70, 60, 60, 2, false, false, true},
                         Shape{5, 33, 40, 100, 100, 1, false, false, true},
                         Shape{9, 17, 33, 64, 64, 1, true, false, true}}) {
    const Tensors<double> given = full<Cell>(s);
    Tensors<double> expected = given;
    by_definition<Cell>(s, expected);
    Tensors<float> in_parts = convert<float>(given), fused = convert<float>(given);
    auto call = arguments(s, in_parts, nullptr), other = arguments(s, fused, nullptr);
    run_forward(tiles, position, call.forward, in_turn(1));
    run_backward(tiles, position, call, in_turn(1));
    run_forward(plain, position, other.forward, in_turn(1));
    run_backward(plain, position, other, in_turn(1));
    const auto want = expected.results();
    const auto have = in_parts.results(), by_fma = fused.results();
    for (size_t i = 0; i < want.size(); ++i) {
      Error a, b;
      for (size_t k = 0; k < want[i].second->size(); ++k) {
        a.add((*have[i].second)[k] - (*want[i].second)[k]);
        b.add((*by_fma[i].second)[k] - (*want[i].second)[k]);
      }
      // What follows the products has errors of its own, and sums of a bias have no others.
      CHECK(a.most <= 2 * b.most && a.squares <= 2.5 * b.squares,
            "%s %s T%d N%d H%d: error %g, of FMAs %g; squares %g and %g", name, want[i].first,
            int(s.T), int(s.N), int(s.H), a.most, b.most, a.squares, b.squares);
    }
  }
}

// Numbers without parts, one by one, in each place that a product reads.
template <class Cell>
void test_redone(const char* name, int position, const fastrnn::Kernels& tiles) {
  const fastrnn::Kernels& plain = fastrnn::cpu::kernels();
  const Shape s = Cell::kKeepsC ? Shape{5, 18, 40, 50, 20, 2, false, true, true}
                                : Shape{5, 18, 40, 50, 50, 2, false, false, true};
  using Place = std::function<float&(Tensors<float>&)>;
  const std::pair<const char*, Place> places[] = {
      {"nowhere", nullptr},
      {"x", [](auto& t) -> float& { return t.x[777]; }},
      {"h0", [](auto& t) -> float& { return t.h0[3]; }},
      {"w_ih", [](auto& t) -> float& { return t.w_ih[1][1234]; }},
      {"w_hh", [](auto& t) -> float& { return t.w_hh[0][99]; }},
      {"w_hr", [](auto& t) -> float& { return t.w_hr[1].empty() ? t.x[0] : t.w_hr[1][7]; }},
      {"dy", [](auto& t) -> float& { return t.dy[100]; }},
      {"dy too", [](auto& t) -> float& { return t.dy[333]; }},
      {"dy again", [](auto& t) -> float& { return t.dy[444]; }},
      {"dh_n", [](auto& t) -> float& { return t.dh_n[5]; }},
  };
  const Tensors<double> given = full<Cell>(s);
  int seen = 0;
  for (const auto& [where, place] : places)
    for (const float value : {kInfinity, -kInfinity, std::nanf(""), 3.3999e38f}) {
      Tensors<float> in_parts = convert<float>(given);
      if (place) place(in_parts) = value;
      auto call = arguments(s, in_parts, nullptr);
      const bool forward = tiles.forward_in_parts[position](call.forward, in_turn(1));
      // Of backward's, a gate may make an ordinary number or nothing at all.
      const bool seldom = *where == 'd';
      CHECK(forward == (!place || seldom), "%s: %g in %s is %s", name, value, where,
            forward ? "not noticed" : "noticed");
      run_forward(tiles, position, call.forward, in_turn(1));
      Tensors<float> plain_results = in_parts;
      auto plain_call = arguments(s, plain_results, nullptr);
      if (!forward) run_forward(plain, position, plain_call.forward, in_turn(1));
      const bool backward = tiles.backward_in_parts[position](call, in_turn(1));
      CHECK(backward == !place || seldom, "%s: %g in %s is %s in backward", name, value, where,
            backward ? "not noticed" : "noticed");
      run_backward(tiles, position, call, in_turn(1));
      run_backward(plain, position, plain_call, in_turn(1));
      const auto have = in_parts.results(), want = plain_results.results();
      for (size_t i = 0; i < want.size(); ++i) {
        const auto &a = *have[i].second, &b = *want[i].second;
        if (!backward)
          CHECK(a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0,
                "%s: %s of %g in %s", name, want[i].first, value, where);
        for (size_t k = 0; k < a.size() && seldom; ++k)
          CHECK(std::isfinite(a[k]) == std::isfinite(b[k]), "%s: %s of %g in %s", name,
                want[i].first, value, where);
      }
      seen += seldom && !backward;
    }
  CHECK(seen > 0, "%s: no gradient is noticed", name);
}

void test_finite() {
  for (const int64_t count : {0, 1, 17, 70'001}) {
    std::vector<float> numbers(count, 1.5f);
    for (const fastrnn::Parallel& parallel : {in_turn(1), in_turn(3), together(3)}) {
      const auto found = [&] {
        return emulated::all_finite<float>(parallel, numbers.data(), count);
      };
      CHECK(found(), "%d finite numbers", int(count));
      for (const int64_t at : {int64_t{0}, count / 3, count / 2, count - 1}) {
        if (count == 0) continue;
        const float before = std::exchange(numbers[at], kInfinity);
        CHECK(!found(), "an infinite one at %d of %d", int(at), int(count));
        numbers[at] = before;
      }
    }
  }
}

void test_rule() {
  using fastrnn::cpu::parts_pay;
  CHECK(!parts_pay({15, 1024, 256, 4}) && parts_pay({16, 1024, 256, 4}), "a mebibyte");
  CHECK(!parts_pay({31, 2048, 512, 4}) && parts_pay({32, 2048, 512, 4}), "four");
  CHECK(!parts_pay({63, 4096, 1024, 4}) && parts_pay({64, 4096, 1024, 4}), "sixteen");
}

int main() {
  test_sum();
  for (const Data data : {Data::kPlain, Data::kScaled, Data::kCancelling})
    for (const int64_t k : {33, 64, 256, 600})
      for (const int64_t m : {1, 16, 21, 32, 47}) {
        if (k > 256 && m < 32) continue;
        test_product<true>(m, k, 70, data);
        test_product<false>(m, k, 40, data);
      }
  fastrnn::cpu::set_in_parts(fastrnn::cpu::InParts::kAlways);
  fastrnn::Kernels tiles = with_emulated_tiles(fastrnn::cpu::kernels());
  for (int i = 0; i < kCells; ++i) {
    tiles.forward_float[i] = fastrnn::cpu::kernels().forward_float[i];
    tiles.backward_float[i] = fastrnn::cpu::kernels().backward_float[i];
  }
  int position = 0;
#define X(Cell, name)                                \
  test_layer<emulated::Cell>(name, position, tiles); \
  test_redone<emulated::Cell>(name, position++, tiles);
  FASTRNN_CELLS(X)
#undef X
  test_finite();
  test_rule();
  return report("test_parts");
}
