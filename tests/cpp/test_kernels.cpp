// The kernels of portable C++, of AVX2 where the machine has it, and of the widest registers
// emulated, with products of pairs and of tiles of Bf16, against loops that use cells.h one number
// at a time, in double. Every array is exactly as long as layer.h says; built for the address and
// undefined-behaviour sanitizers. With FASTRNN_OFFERED_ONLY nothing is
// emulated, and nothing portable.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#if defined(FASTRNN_OFFERED_ONLY)
#define FASTRNN_BYTES 16
#else
#define FASTRNN_ISA_NAME "emulated 512 bits"
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#endif
#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#if defined(FASTRNN_OFFERED_ONLY)
#include "cpu/activations.h"
//
#include "cells.h"
#else
#include "cpu/table.h"
#endif
#include "programs.h"
#include "tensors.h"
#include "together.h"

fastrnn::Kernels with_emulated_tiles(const fastrnn::Kernels& others);  // emulated_tiles.cpp

constexpr int kCells = 0
#define X(Cell, name) +1
    FASTRNN_CELLS(X)
#undef X
    ;

template <class T>
void compare(const char* what, const Shape& s, const Tensors<double>& expected,
             const Tensors<T>& got, double tolerance, size_t count, const char* skipped) {
  const auto want = expected.results();
  const auto have = got.results();
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(want[i].first, skipped) == 0) continue;
    const Array<double>& a = *want[i].second;
    double size = 1, error = 0;
    for (size_t k = 0; k < a.size(); ++k) size = std::max(size, std::abs(a[k]));
    for (size_t k = 0; k < a.size(); ++k) {
      const double e = std::abs(number((*have[i].second)[k]) - a[k]);
      error = error >= e || std::isnan(error) ? error : e;  // a NaN stays
    }
    CHECK(error <= tolerance * size, "%s %s T%d N%d I%d H%d P%d D%d%s: error %g", what,
          want[i].first, int(s.T), int(s.N), int(s.I), int(s.H), int(s.P), int(s.D),
          s.packed ? " packed" : "", error);
  }
}

// That a step whose derivatives are all zero takes part in no product changes no bit: with an
// infinite number in the last column of x every step takes part, and only that column's sums
// differ.
template <class T>
void run_live(const char* name, const Shape& s, const Tensors<T>& skipped,
              fastrnn::BackwardKernel<T>* backward, const bool* reset,
              const fastrnn::Program* program) {
  Tensors<T> live = skipped;
  const int64_t rows = static_cast<int64_t>(live.x.size()) / s.I;
  for (int64_t row = 0; row < rows; ++row)
    live.x[row * s.I + s.I - 1] = as<T>(std::numeric_limits<double>::infinity());
  for (const fastrnn::Parallel& parallel : {in_turn(1), in_turn(3)}) {
    fastrnn::Backward<T> call = arguments(s, live, reset);
    call.forward.program = program;
    backward(call, parallel);
    for (int64_t d = 0; d < s.D; ++d)
      for (size_t i = s.I - 1; i < live.dw_ih[d].size(); i += s.I) {
        CHECK(live.active.empty() || !std::isfinite(number(live.dw_ih[d][i])), "%s: inf times zero",
              name);
        live.dw_ih[d][i] = skipped.dw_ih[d][i];
      }
    const auto a = skipped.results(), b = live.results();
    for (size_t k = 0; k < a.size(); ++k)
      CHECK(*a[k].second == *b[k].second, "%s T%d N%d %s depends on products with zeros", name,
            int(s.T), int(s.N), a[k].first);
  }
}

template <class T>
void run(const char* name, const Shape& s, const Tensors<double>& expected,
         fastrnn::ForwardKernel<T>* forward, fastrnn::BackwardKernel<T>* backward,
         const fastrnn::Program* program) {
  // Of a Bf16, four units in the last place of the largest: results are rounded once, gradients
  // come from states and gates that were, and, of a wide projection, are sums of many such.
  const double tolerance = std::is_same_v<T, Bf16>    ? (s.P > 1000 ? 0x1p-5 : 0x1p-6)
                           : std::is_same_v<T, float> ? 2e-5
                                                      : 1e-12;
  const T nan = as<T>(std::nan(""));
  std::unique_ptr<Tensors<T>> first;
  for (const fastrnn::Parallel& parallel : {in_turn(1), in_turn(3), together(3)}) {
    auto t = std::make_unique<Tensors<T>>(convert<T>(expected));
    // The program may save other planes than the definition does.
    const bool other = program && program->gates_w > 0;
    if (other) t->gates.assign(s.D * (t->x.size() / s.I) * program->info.saved * s.H, nan);
    fastrnn::Backward<T> b = arguments(s, *t, expected.reset.get());
    b.forward.program = program;
    forward(b.forward, parallel);
    backward(b, parallel);
    compare(name, s, expected, *t, tolerance, expected.results().size(), other ? "gates" : "");

    Tensors<T> inference = convert<T>(expected);
    fastrnn::Backward<T> i = arguments(s, inference, expected.reset.get());
    i.forward.program = program;
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
  if (s.loss != Loss::kAll) run_live(name, s, *first, backward, expected.reset.get(), program);
}

using Tables = std::vector<const fastrnn::Kernels*>;

template <class Cell>
void test(const char* name, int position, const Tables& tables) {
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
  // Losses that read little: steps without derivatives at either end of time, of both directions,
  // in chunks of one step and of many, in whole grains or not, where threads share rows or units.
  const Shape sparse[] = {
      {70, 3, 5, 21, 21, 2, false, false, true, false, false, 0, 0, Loss::kMiddleStep},
      {75, 1, 4, 12, 12, 2, false, false, true, false, false, 0, 0, Loss::kLastStep},
      {9, 40, 3, 9, 9, 1, false, false, true, false, false, 0, 0, Loss::kMiddleStep},
      {40, 9, 4, 21, 21, 2, true, false, false, false, false, 0, 0, Loss::kMiddleStep},
      {12, 6, 4, 17, 17, 2, true, false, true, false, false, 0, 0, Loss::kFinalH},
      {50, 7, 4, 20, 20, 2, false, false, true, true, false, 4, 0.3, Loss::kMiddleStep},
      {50, 6, 5, 17, 17, 1, false, false, true, false, true, 0, 0, Loss::kLastStep},
      {50, 2, 5, 17, 17, 1, false, false, true, false, false, 5, 0, Loss::kFinalC},
      {6, 3, 5, 17, 17, 2, false, false, true, false, false, 0, 0, Loss::kNothing},
      {45, 3, 5, 190, 190, 1, false, false, true, false, false, 0, 0, Loss::kMiddleStep},
  };
  const Shape sparse_projected[] = {
      {70, 3, 4, 19, 7, 2, true, true, true, false, false, 0, 0, Loss::kMiddleStep},
      {40, 4, 4, 19, 7, 2, false, true, true, true, false, 3, 0.4, Loss::kMiddleStep},
      {20, 2, 9, 40, 33, 1, false, true, false, false, false, 0, 0, Loss::kFinalC},
  };
  std::vector<Shape> all(std::begin(shapes), std::end(shapes));
  all.insert(all.end(), std::begin(features), std::end(features));
  if (Cell::kKeepsC) all.insert(all.end(), std::begin(projected), std::end(projected));
  all.insert(all.end(), std::begin(sparse), std::end(sparse));
  if (Cell::kKeepsC)
    all.insert(all.end(), std::begin(sparse_projected), std::end(sparse_projected));

#if defined(FASTRNN_OFFERED_ONLY)  // for an emulated processor, on which two of them take minutes
  std::erase_if(all, [](const Shape& s) { return s.T * s.N * s.H * s.H > 1'000'000; });
#endif

  for (const Shape& s : all) {
    Tensors<double> expected = make<Cell>(s);
    by_definition<Cell>(s, expected);
    for (const fastrnn::Kernels* k : tables) {
      const auto all_types = [&](const char* way, int at, const fastrnn::Program* program) {
        const std::string what = std::string(k->name) + " " + name + way;
        // Tables share kernels.
        const auto first = [&](auto kernels) {
          return *std::find_if(tables.begin(), tables.end(), [&](const fastrnn::Kernels* other) {
            return (other->*kernels)[at] == (k->*kernels)[at];
          }) == k;
        };
        if (first(&fastrnn::Kernels::forward_float))
          run<float>((what + " float").c_str(), s, expected, k->forward_float[at],
                     k->backward_float[at], program);
        if (first(&fastrnn::Kernels::forward_double))
          run<double>((what + " double").c_str(), s, expected, k->forward_double[at],
                      k->backward_double[at], program);
        run<Bf16>((what + " bfloat16").c_str(), s, expected, k->forward_bf16[at],
                  k->backward_bf16[at], program);
      };
      all_types("", position, nullptr);
      if (const fastrnn::Program* const program = program_of<Cell>())
        all_types(" as a program", kCells, program);
      const fastrnn::Program* const two_products = two_products_of<Cell>();
      if (two_products && !s.projected) all_types(" by two products", kCells, two_products);
    }
  }
}

// A step of halves: the numbers of the kernels of float, rounded once.
template <class Cell>
void test_half_steps(const char* name, int position, const Tables& tables) {
  const int64_t P = Cell::kKeepsC ? 19 : 37;
  for (const Shape& s : {Shape{1, 1, 21, 37, 37, 1, false, false, true},
                         Shape{1, 3, 21, 37, P, 2, false, Cell::kKeepsC, true},
                         Shape{1, 32, 16, 64, 64, 1, false, false, false}}) {
    Tensors<double> given = make<Cell>(s);
    const auto round = [](Array<double>& a) {
      for (double& x : a) x = number(as<F16>(x / 3));
    };
    for (Array<double>* a : {&given.x, &given.h0, &given.c0}) round(*a);
    for (int64_t d = 0; d < s.D; ++d)
      for (Array<double>* a :
           {&given.w_ih[d], &given.w_hh[d], &given.b_ih[d], &given.b_hh[d], &given.w_hr[d]})
        round(*a);
    for (const fastrnn::Kernels* k : tables)
      for (const fastrnn::Parallel& parallel : {in_turn(1), in_turn(3)}) {
        Tensors<F16> half = convert<F16>(given);
        Tensors<float> wide = convert<float>(given);
        CHECK(k->half_step[position](arguments(s, half, nullptr).forward, parallel), "%s %s",
              k->name, name);
        k->forward_float[position](arguments(s, wide, nullptr).forward, parallel);
        for (const auto& [a, b] : {std::pair(&half.y, &wide.y), std::pair(&half.h_n, &wide.h_n),
                                   std::pair(&half.c_n, &wide.c_n)})
          for (size_t i = 0; i < a->size(); ++i)
            CHECK((*a)[i].bits == as<F16>((*b)[i]).bits, "%s %s N%d: %g for %g", k->name, name,
                  int(s.N), number((*a)[i]), (*b)[i]);
      }
  }
  for (const Shape& s : {Shape{2, 1, 5, 7, 7, 1, false, false, true},
                         Shape{1, 33, 5, 7, 7, 1, false, false, true}}) {
    Tensors<F16> half = convert<F16>(make<Cell>(s));
    CHECK(!tables[0]->half_step[position](arguments(s, half, nullptr).forward, in_turn(1)),
          "%s: %d steps of %d rows", name, int(s.T), int(s.N));
  }
}

// Read by the address sanitizer: whatever is allocated starts as NaN.
extern "C" const char* __asan_default_options() {
  return "max_malloc_fill_size=1000000000:malloc_fill_byte=255";
}

int main() {
  fastrnn::cpu::panel_bytes =
      16 * 1024;  // on every CPU, so that large layers have panels in pieces
#if defined(FASTRNN_OFFERED_ONLY)
  Tables tables;
#else
  const fastrnn::Kernels tiles = with_emulated_tiles(emulated::kTable);
  Tables tables = {&emulated::kTable, &tiles};
#endif
  for (int i = 0; i < fastrnn::cpu::isa_count(); ++i) {
    fastrnn::cpu::isa_select(fastrnn::cpu::isa_name(i));
    tables.push_back(&fastrnn::cpu::kernels());
  }
#if defined(FASTRNN_OFFERED_ONLY)
  tables.pop_back();  // the portable one, which test_bits.cpp looks at
#endif
  {
    Threads cells;
#define X(Cell, name) cells.emplace_back(test<emulated::Cell>, name, cells.size(), tables);
    FASTRNN_CELLS(X)
#undef X
  }
#if !defined(FASTRNN_OFFERED_ONLY)
  std::erase(tables, &tiles);  // whose kernels of float multiply parts, and round otherwise
#endif
  int position = 0;
#define X(Cell, name) test_half_steps<emulated::Cell>(name, position++, tables);
  FASTRNN_CELLS(X)
  return report("test_kernels");
}
