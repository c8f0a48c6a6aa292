// The bits of a layer, forward and backward. They depend neither on how many rows and units are
// computed together, nor on what is saved, nor on the compiler and its options; and the instruction
// sets agree, those that multiply and add at once, and those that round in between.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 16
#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/isa.h"
#include "tensors.h"
#include "together.h"

template <class T>
using Forward = fastrnn::ForwardKernel<T>;
template <class T>
using Backward = fastrnn::BackwardKernel<T>;

// The first rows of a batch alone have the bits that they have in it: what is computed together are
// then other groups, of every size.
template <class Cell, class T>
void groups(const char* name, Forward<T>* forward) {
  Shape s{9, 9, 5, 37, 37, 1, false, false, true};
  Tensors<double> numbers = make<Cell>(s);
  const int64_t all = s.N, row = s.P;
  Tensors<T> whole = convert<T>(numbers);
  forward(arguments(s, whole, nullptr).forward, in_turn(1));
  for (s.N = 1; s.N <= all; ++s.N) {
    const auto first = [&](const Array<double>& of, int64_t columns) {
      Array<double> some;
      for (size_t block = 0; block < of.size(); block += all * columns)
        some.insert(some.end(), of.begin() + block, of.begin() + block + s.N * columns);
      return some;
    };
    Tensors<double> part = make<Cell>(s);
    part.x = first(numbers.x, s.I), part.h0 = first(numbers.h0, s.H);
    part.c0 = first(numbers.c0, s.H);
    for (int d = 0; d < 2; ++d) {
      part.w_ih[d] = numbers.w_ih[d], part.w_hh[d] = numbers.w_hh[d];
      part.b_ih[d] = numbers.b_ih[d], part.b_hh[d] = numbers.b_hh[d];
    }
    Tensors<T> some = convert<T>(part);
    for (const bool save : {true, false}) {
      fastrnn::Backward<T> b = arguments(s, some, nullptr);
      b.forward.save = save;
      forward(b.forward, in_turn(1));
      bool same = true;
      for (int64_t t = 0; t < s.T; ++t)
        same &= std::equal(&some.y[t * s.N * row], &some.y[t * s.N * row] + s.N * row,
                           &whole.y[t * all * row]);
      CHECK(same, "%s: %d of %d rows, save %d", name, int(s.N), int(all), save);
    }
  }
}

// Of all results: FNV-1a.
template <class Cell, class T>
uint32_t digest(Forward<T>* forward, Backward<T>* backward) {
  uint32_t hash = 2166136261;
  generator().seed(1);
  for (const Shape& s : {Shape{9, 1, 5, 37, 37, 2, false, false, true},
                         Shape{12, 7, 70, 21, 21, 2, true, false, true},
                         Shape{2, 17, 9, 300, 300, 1, false, false, true}}) {
    Tensors<T> t = convert<T>(make<Cell>(s));
    fastrnn::Backward<T> b = arguments(s, t, nullptr);
    forward(b.forward, in_turn(2));
    backward(b, in_turn(2));
    for (const auto& [what, numbers] : t.results()) {
      const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers->data());
      for (size_t i = 0; i < numbers->size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 16777619;
    }
  }
  return hash;
}

// What every compiler makes of them: float and double, with and without fused products.
struct Expected {
  const char* cell;
  uint32_t fused[2], apart[2];
};
constexpr Expected kExpected[] = {{"lstm", {0x0f17e578, 0xdbee1e15}, {0x32d57c2a, 0xc8c5b97d}},
                                  {"gru", {0xc363f5c4, 0xe21b4fb1}, {0xfbc69bc1, 0x3e789df6}},
                                  {"rnn_tanh", {0xe218d8a3, 0x1574f0ea}, {0xf4c5fbca, 0xab598d06}},
                                  {"rnn_relu", {0x656956ad, 0xe9ed8eba}, {0xe2991f24, 0xa2dadbff}}};

template <class Cell>
void test(const char* cell, int position) {
  const fastrnn::Kernels& k = fastrnn::cpu::kernels();
  const std::string name = std::string(k.name) + " " + cell;
  groups<Cell, float>(name.c_str(), k.forward_float[position]);
  groups<Cell, double>(name.c_str(), k.forward_double[position]);
  groups<Cell, Bf16>(name.c_str(), k.forward_bf16[position]);
  const auto& expected =
      std::string("portable") == k.name ? kExpected[position].apart : kExpected[position].fused;
  const uint32_t got[] = {
      digest<Cell, float>(k.forward_float[position], k.backward_float[position]),
      digest<Cell, double>(k.forward_double[position], k.backward_double[position])};
  for (int i = 0; i < 2; ++i)
    CHECK(got[i] == expected[i], "%s %s: 0x%08x", name.c_str(), i ? "double" : "float", got[i]);
}

int main() {
  for (int i = 0; i < fastrnn::cpu::isa_count(); ++i) {
    fastrnn::cpu::isa_select(fastrnn::cpu::isa_name(i));
    int position = 0;
#define X(Cell, name) test<emulated::Cell>(name, position++);
    FASTRNN_CELLS(X)
#undef X
  }
  return report("test_bits");
}
