// Layers of floats in parts, with emulated tiles, and of floats that are rounded for products: that
// results and gradients are as near as they should be, that a row depends on no other, and that a
// layer with a number which has no parts is computed without them. Products alone are in
// test_parts.cpp.
#include <functional>
#include <utility>
#include <vector>

#include "parts.h"

using fastrnn::cpu::run_backward, fastrnn::cpu::run_forward;

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others);     // emulated_tiles.cpp
fastrnn::Kernels with_emulated_rounding(const fastrnn::Kernels& others);  // emulated_rounding.cpp

// Kernels, and of how many parts each of their products may be.
struct Way {
  fastrnn::Kernels kernels;
  std::vector<int> parts;
};

constexpr int kCells = 0
#define X(Cell, name) +1
    FASTRNN_CELLS(X)
#undef X
    ;

struct Error {
  double most = 0, squares = 0;
  void add(double error) {
    most = std::max(most, std::abs(error));
    squares += error * error;
  }
};

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

// The error of each result as a share of it, both as the root of the mean square: of so many parts
// in forward, and in backward from what FMAs have saved.
constexpr struct {
  double least, most;
} kOfResults[] = {{0x1p-12, 0x1p-8}, {0x1p-21, 0x1p-17}, {0, 0x1p-21}};
template <class Cell>
void test_few_parts(const char* name, int position, const Way& way) {
  const fastrnn::Kernels& plain = fastrnn::cpu::kernels();
  const int64_t P = Cell::kKeepsC ? 21 : 50;
  for (const Shape& s : {Shape{5, 33, 40, 70, 70, 2, false, false, true},
                         Shape{7, 19, 37, 50, P, 1, true, Cell::kKeepsC, true},
                         Shape{4, 3, 65, 50, P, 2, false, Cell::kKeepsC, true}}) {
    const Tensors<double> given = full<Cell>(s);
    Tensors<double> expected = given;
    by_definition<Cell>(s, expected);
    Tensors<float> fused = convert<float>(given);
    run_forward(plain, position, arguments(s, fused, nullptr).forward, in_turn(1));
    for (const int parts : way.parts) {
      // Forward's and backward's, of one thread and of three.
      Tensors<float> forward[2], backward[2];
      for (int i = 0; i < 2; ++i) {
        forward[i] = convert<float>(given), backward[i] = fused;
        auto f = arguments(s, forward[i], nullptr), b = arguments(s, backward[i], nullptr);
        f.forward.parts = b.forward.parts = parts;
        const fastrnn::Parallel threads = i == 0 ? in_turn(1) : together(3);
        CHECK(way.kernels.forward_in_parts[position](f.forward, threads), "%s forward", name);
        CHECK(way.kernels.backward_in_parts[position](b, threads), "%s backward", name);
      }
      const auto want = expected.results();
      for (size_t i = 0; i < want.size(); ++i) {
        const Tensors<float>(&have)[2] = *want[i].first == 'd' ? backward : forward;
        const Array<float>&found = *have[0].results()[i].second,
              &again = *have[1].results()[i].second;
        if (found.empty()) continue;
        CHECK(memcmp(found.data(), again.data(), found.size() * sizeof(float)) == 0,
              "%s %s of three threads, %d parts", name, want[i].first, parts);
        Error error, size;
        for (size_t k = 0; k < found.size(); ++k) {
          error.add(found[k] - (*want[i].second)[k]);
          size.add((*want[i].second)[k]);
        }
        // Sums of a bias have no products of their own.
        const auto& [least, most] = kOfResults[parts - 1];
        const double share = std::sqrt(error.squares / size.squares);
        CHECK(share <= most && (share >= least || want[i].first[1] == 'b'),
              "%s %s N%d: a share of %g is wrong, %d parts", name, want[i].first, int(s.N), share,
              parts);
      }
    }
  }
}

// The weight gradients of each batch row, beside those of FMAs: also where only some steps are
// live, which begin at no multiple of the depth of a tile.
template <class Cell>
void test_each_row(const char* name, int position, const Way& way) {
  const fastrnn::Kernels& plain = fastrnn::cpu::kernels();
  for (const Loss loss : {Loss::kAll, Loss::kLastStep, Loss::kMiddleStep}) {
    const int64_t P = Cell::kKeepsC ? 21 : 50, N = 20;
    Shape s{7, N, 37, 50, P, 2, false, Cell::kKeepsC, true};
    s.loss = loss;
    const Tensors<double> given = full<Cell>(s);
    Tensors<float> with[2];  // parts, and FMAs
    for (int i = 0; i < 2; ++i) {
      Tensors<float>& t = with[i] = convert<float>(given);
      for (int d = 0; d < 2; ++d)
        for (Array<float>* sums : {&t.dw_ih[d], &t.dw_hh[d], &t.db_ih[d], &t.db_hh[d], &t.dw_hr[d]})
          sums->assign(sums->size() * N, std::nanf(""));
      auto call = arguments(s, t, nullptr);
      call.of_rows = true;
      call.forward.parts = way.parts.back();
      run_forward(i ? plain : way.kernels, position, call.forward, in_turn(1));
      run_backward(i ? plain : way.kernels, position, call, in_turn(3));
    }
    const auto have = with[0].results(), want = with[1].results();
    for (size_t i = 0; i < want.size(); ++i) {
      float error = 0, size = 0;
      for (size_t k = 0; k < want[i].second->size(); ++k) {
        const float e = std::abs((*have[i].second)[k] - (*want[i].second)[k]);
        error = error >= e || std::isnan(error) ? error : e;  // a NaN stays
        size = std::max(size, std::abs((*want[i].second)[k]));
      }
      const float most = way.parts.back() == 1 ? 0.03f : 1e-5f;
      CHECK(error <= most * size, "%s %s of each row, loss %d: error %g of %g", name, want[i].first,
            int(loss), error, size);
    }
  }
}

// Numbers without parts, one by one, in each place that a product reads.
template <class Cell>
void test_redone(const char* name, int position, const fastrnn::Kernels& tiles, int parts) {
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
      call.forward.parts = parts;
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

// Whether an LSTM of 32 inputs is computed in parts, forward, and backward alike.
bool chosen(const fastrnn::Kernels& kernels, int64_t steps, int64_t rows, int64_t H, int parts) {
  const Shape s{steps, rows, 32, H, H, 1, false, false, true};
  Tensors<float> t = convert<float>(make<emulated::Lstm>(s));
  auto call = arguments(s, t, nullptr);
  call.forward.parts = parts;
  const bool forward = kernels.forward_in_parts[0](call.forward, in_turn(1));
  CHECK(kernels.backward_in_parts[0](call, in_turn(1)) == forward, "backward chooses otherwise");
  return forward;
}

// Where parts are chosen by a rule, as many rows in one step are left to a kernel that packs no
// weights.
void test_choice(const fastrnn::Kernels& tiles) {
  using fastrnn::cpu::InParts;
  fastrnn::cpu::set_in_parts(InParts::kWhereFaster);
  for (const int parts : {1, 2, 3}) {
    const int64_t rows[] = {4, 8, 16};
    CHECK(chosen(tiles, 2, rows[parts - 1], 32, parts) &&
              !chosen(tiles, 2, rows[parts - 1] - 1, 32, parts),
          "%d parts: not from %d rows on", parts, int(rows[parts - 1]));
    CHECK(!chosen(tiles, 1, 32, 32, parts) && chosen(tiles, 1, 33, 32, parts),
          "%d parts in one step", parts);
  }
  fastrnn::cpu::set_in_parts(InParts::kNever);
  CHECK(!chosen(tiles, 2, 64, 32, 1), "never");
  fastrnn::cpu::set_in_parts(InParts::kAlways);
  CHECK(chosen(tiles, 1, 1, 32, 3), "always");
}

// The same of products that round, which the sizes of a step and of the call decide.
void test_choice_of_rounding(const fastrnn::Kernels& rounded) {
  using fastrnn::cpu::InParts;
  fastrnn::cpu::set_in_parts(InParts::kWhereFaster);
  CHECK(chosen(rounded, 9, 64, 32, 1) && !chosen(rounded, 9, 99, 31, 1), "not from 32 units on");
  CHECK(chosen(rounded, 8, 8, 32, 1) && !chosen(rounded, 7, 9, 32, 1), "another least call");
  CHECK(!chosen(rounded, 9, 64, 32, 2) && !chosen(rounded, 9, 64, 32, 3), "more parts than one");
  CHECK(!chosen(rounded, 1, 32, 64, 1) && chosen(rounded, 1, 33, 64, 1), "one step");
  fastrnn::cpu::set_in_parts(InParts::kNever);
  CHECK(!chosen(rounded, 9, 64, 32, 1), "never");
  fastrnn::cpu::set_in_parts(InParts::kAlways);
  CHECK(chosen(rounded, 1, 1, 3, 1) && !chosen(rounded, 1, 1, 3, 2), "always");
}

int main() {
  fastrnn::cpu::set_in_parts(fastrnn::cpu::InParts::kAlways);
  Way tiles{with_emulated_tiles(fastrnn::cpu::kernels()), {1, 2, 3}};
  const Way rounded{with_emulated_rounding(fastrnn::cpu::kernels()), {1}};
  for (int i = 0; i < kCells; ++i) {
    tiles.kernels.forward_float[i] = fastrnn::cpu::kernels().forward_float[i];
    tiles.kernels.backward_float[i] = fastrnn::cpu::kernels().backward_float[i];
  }
  int position = 0;
#define X(Cell, name)                                                   \
  test_layer<emulated::Cell>(name, position, tiles.kernels);            \
  for (const Way* way : {&std::as_const(tiles), &rounded}) {            \
    test_few_parts<emulated::Cell>(name, position, *way);               \
    for (const int parts : way->parts)                                  \
      test_redone<emulated::Cell>(name, position, way->kernels, parts); \
    test_each_row<emulated::Cell>(name, position, *way);                \
  }                                                                     \
  ++position;
  FASTRNN_CELLS(X)
#undef X
  test_choice(tiles.kernels);
  test_choice_of_rounding(rounded.kernels);
  return report("test_parts_layers");
}
