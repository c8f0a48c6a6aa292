// The bits of a layer, forward and backward. They depend neither on how many rows and units are
// computed together, nor on what is saved, nor on the compiler and its options; and the instruction
// sets agree, those that multiply and add at once, and those that round in between, but for pairs
// of Bf16 and a few steps.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
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
void groups(const char* name, int64_t steps, Forward<T>* forward) {
  Shape s{steps, 9, 5, 37, 37, 1, false, false, true};
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
      CHECK(same, "%s: %d steps, %d of %d rows, save %d", name, int(s.T), int(s.N), int(all), save);
    }
  }
}

// FNV-1a.
struct Digest {
  uint32_t hash = 2166136261;

  template <class T>
  void add(const Array<T>& numbers) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers.data());
    for (size_t i = 0; i < numbers.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 16777619;
  }
};

// Of all results.
template <class Cell, class T>
uint32_t digest(Forward<T>* forward, Backward<T>* backward) {
  Digest all;
  generator().seed(1);
  for (const Shape& s : {Shape{9, 1, 5, 37, 37, 2, false, false, true},
                         Shape{12, 7, 70, 21, 21, 2, true, false, true},
                         Shape{2, 17, 9, 300, 300, 1, false, false, true}}) {
    Tensors<T> t = convert<T>(make<Cell>(s));
    fastrnn::Backward<T> b = arguments(s, t, nullptr);
    forward(b.forward, in_turn(2));
    backward(b, in_turn(2));
    for (const auto& [what, numbers] : t.results()) all.add(*numbers);
  }
  return all.hash;
}

// Of one step, and of three of one row, in float and double; and of a step of halves.
template <class Cell>
uint32_t digest_of_steps(const fastrnn::Kernels& k, int position) {
  Digest all;
  generator().seed(1);
  for (const Shape& s : {Shape{1, 7, 21, 37, 37, 2, false, false, true},
                         Shape{3, 1, 21, 37, 37, 1, false, false, true}}) {
    const Tensors<double> numbers = make<Cell>(s);
    Tensors<float> f = convert<float>(numbers);
    Tensors<double> d = convert<double>(numbers);
    Tensors<F16> h = convert<F16>(numbers);
    k.forward_float[position](arguments(s, f, nullptr).forward, in_turn(1));
    k.forward_double[position](arguments(s, d, nullptr).forward, in_turn(1));
    all.add(f.y), all.add(f.h_n), all.add(f.c_n);
    all.add(d.y), all.add(d.h_n), all.add(d.c_n);
    if (k.half_step[position](arguments(s, h, nullptr).forward, in_turn(1)))
      all.add(h.y), all.add(h.h_n), all.add(h.c_n);
  }
  return all.hash;
}

// Of streams of small weights, in each format.
template <class Cell>
uint32_t digest(fastrnn::SmallStreamKernel* kernel) {
  using fastrnn::Format;
  constexpr int64_t I = 21, H = 37, G = Cell::kGates, steps = 4, offset = 0;
  Digest all;
  generator().seed(1);
  for (const int64_t N : {1, 2, 5, 17})
    for (const auto& [format, wide] :
         {std::pair(Format::kBf16, true), std::pair(Format::kF16, true),
          std::pair(Format::kInt8, true), std::pair(Format::kInt8, false)}) {
      const auto x = uniform_vector<float>(steps * N * I), bias = uniform_vector<float>(G * H);
      const auto scale = uniform_vector<float>(G * H, 0.002);
      auto h = uniform_vector<float>(N * H), c = uniform_vector<float>(N * H);
      Array<float> y(steps * N * H);
      Array<int8_t> bytes[2];
      Array<uint16_t> halves[2];
      for (const int m : {0, 1})
        for (const double w : uniform_vector<double>(G * H * (m ? H : I))) {
          bytes[m].push_back(static_cast<int8_t>(127 * w));
          halves[m].push_back(format == Format::kBf16 ? as<Bf16>(w / 4).bits : as<F16>(w / 4).bits);
        }
      const auto weight = [&](int m) -> fastrnn::SmallWeight {
        if (format == Format::kInt8) return {bytes[m].data(), scale.data(), format};
        return {halves[m].data(), nullptr, format};
      };
      fastrnn::Forward<float> f{};
      f.size = {1, N, I, H, H, 1, N, false, &N, &offset, nullptr, nullptr};
      f.weights[0].b_ih = f.weights[0].b_hh = bias.data();
      f.x = x.data(), f.y = y.data();
      f.h0 = f.h_n = h.data(), f.c0 = f.c_n = c.data();
      std::unique_ptr<fastrnn::Stream>(kernel(f, {weight(0), weight(1), {}, wide}))->steps(steps);
      all.add(y), all.add(h), all.add(c);
    }
  return all.hash;
}

// What every compiler makes of them: of float, double, Bf16 and small weights, with and without
// fused products; of Bf16 by AVX512_BF16, which multiplies pairs; and of a few steps, whose sums
// are those of the lanes of a register, by NEON, AVX2, AVX-512 and the portable kernels.
struct Expected {
  const char* cell;
  uint32_t fused[4], apart[4], pairs, steps[4];
};
constexpr Expected kExpected[] = {
    {"lstm",
     {0x0f17e578, 0xdbee1e15, 0xf5d5f828, 0x59927f9b},
     {0x32d57c2a, 0xc8c5b97d, 0x5295505d, 0x0788c9d2},
     0x2b3f1e8f,
     {0x91c06eec, 0xdca099f5, 0xeee3c8f6, 0x09603451}},
    {"gru",
     {0xc363f5c4, 0xe21b4fb1, 0x43b92767, 0x2781807a},
     {0xfbc69bc1, 0x3e789df6, 0x7b88e1fc, 0xb83ef302},
     0x2b50ed5e,
     {0xa1e7fc28, 0x252008b8, 0xada29d2d, 0xc7ee4724}},
    {"rnn_tanh",
     {0xe218d8a3, 0x1574f0ea, 0xa4932ab4, 0xfc1c05e1},
     {0xf4c5fbca, 0xab598d06, 0xea830cd2, 0xcbfcac17},
     0x692850fd,
     {0x2b0229a1, 0x9095f35a, 0x897d1a56, 0xfb3bacd4}},
    {"rnn_relu",
     {0x656956ad, 0xe9ed8eba, 0x7415b919, 0x08e31b20},
     {0xe2991f24, 0xa2dadbff, 0x3e4db080, 0xd8f6c683},
     0x691848b8,
     {0xe5b23059, 0xe5122a89, 0xd2f4cea3, 0xe5b23059}},
};

template <class Cell>
void test(const char* cell, int position) {
  const fastrnn::Kernels& k = fastrnn::cpu::kernels();
  const std::string name = std::string(k.name) + " " + cell;
  for (const int64_t steps : {1, 9}) {
    groups<Cell, float>(name.c_str(), steps, k.forward_float[position]);
    groups<Cell, double>(name.c_str(), steps, k.forward_double[position]);
    groups<Cell, Bf16>(name.c_str(), steps, k.forward_bf16[position]);
  }
  const std::string set = k.name;
  const Expected& all = kExpected[position];
  const auto& expected = set == "portable" ? all.apart : all.fused;
  // AMX multiplies many pairs at once, and ARM's instruction rounds in its own way.
  const bool pairs = set == "avx512bf16", other_pairs = set == "amx" || set == "neonbf16";
  const int registers = set == "portable"                   ? 3
                        : set.starts_with("neon")           ? 0
                        : set == "avx2" || set == "avxvnni" ? 1
                                                            : 2;
  const auto check = [&](const char* what, uint32_t got, uint32_t wanted) {
    CHECK(got == wanted, "%s %s: 0x%08x", name.c_str(), what, got);
  };
  check("float", digest<Cell, float>(k.forward_float[position], k.backward_float[position]),
        expected[0]);
  check("double", digest<Cell, double>(k.forward_double[position], k.backward_double[position]),
        expected[1]);
  if (!other_pairs)
    check("bfloat16", digest<Cell, Bf16>(k.forward_bf16[position], k.backward_bf16[position]),
          pairs ? all.pairs : expected[2]);
  check("small weights", digest<Cell>(k.small_stream[position]), expected[3]);
  check("a few steps", digest_of_steps<Cell>(k, position), all.steps[registers]);
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
