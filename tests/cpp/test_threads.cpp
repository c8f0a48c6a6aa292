// How threads share a layer: rows that end early, units in teams, slices; the same numbers as on
// one thread, whoever comes when. And that a call which finds no memory, on whichever thread, says
// so, keeps nobody waiting, and that the next call is as good as ever.
//
// Memory is the test's own, each piece exactly as long as was asked for. For the sanitizers of
// addresses and of threads.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 16
#include "cpu/isa.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "cpu/kernels.h"
#include "tensors.h"
#include "together.h"

std::atomic<int64_t> left = INT64_MAX;  // pieces until there is no more memory

namespace fastrnn::cpu {
void* take_memory(size_t bytes) {
  if (left.fetch_sub(1) <= 0) throw std::runtime_error("no memory");
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes) != 0) std::abort();
  return memory;
}
void give_memory_back(void* memory, size_t) noexcept { std::free(memory); }
}  // namespace fastrnn::cpu

// Forward, backward and inference.
template <class Cell, class T>
Tensors<T> call(const Shape& s, const Tensors<double>& from, const fastrnn::Parallel& parallel) {
  Tensors<T> t = convert<T>(from);
  fastrnn::Backward<T> b = arguments(s, t, from.reset.get());
  emulated::forward<Cell, T>(b.forward, parallel);
  emulated::backward<Cell, T>(b, parallel);
  Array<T> y = t.y;
  b.forward.save = false;
  emulated::forward<Cell, T>(b.forward, parallel);
  CHECK(y == t.y, "inference differs");
  return t;
}

template <class T>
void expect_same(const char* what, const Shape& s, const Tensors<T>& a, const Tensors<T>& b) {
  const auto first = a.results(), second = b.results();
  for (size_t i = 0; i < first.size(); ++i) {
    const Array<T>&x = *first[i].second, &y = *second[i].second;
    CHECK(x.size() == y.size() &&
              (x.empty() || !std::memcmp(x.data(), y.data(), x.size() * sizeof(T))),
          "%s: %s of T%d N%d H%d D%d", what, first[i].first, int(s.T), int(s.N), int(s.H),
          int(s.D));
  }
}

// How a call is split.
template <class Cell, class T>
fastrnn::cpu::Split split_of(const Shape& s, const Tensors<double>& from, int64_t threads) {
  Tensors<T> t = convert<T>(from);
  const fastrnn::Backward<T> b = arguments(s, t, from.reset.get());
  return emulated::Layer<Cell, T>(b.forward, together(threads)).split;
}

enum class Way { kRows, kUnits, kSlices };

template <class Cell, class T>
void test(const Shape& s, Way way) {
  const Tensors<double> from = make<Cell>(s);
  const Tensors<T> expected = call<Cell, T>(s, from, in_turn(1));
  for (const int64_t threads : {2, 3, 4}) {
    const auto split = split_of<Cell, T>(s, from, threads * s.D);
    CHECK((way == Way::kRows ? split.rows : split.units) == threads, "not split");
    CHECK((split.slices > 1) == (way == Way::kSlices), "%d slices", int(split.slices));
    expect_same("together", s, expected, call<Cell, T>(s, from, together(threads * s.D)));
    expect_same("in turn", s, expected, call<Cell, T>(s, from, in_turn(threads * s.D)));
  }
  // Threads of which not all find work, or that share the product of the input.
  expect_same("uneven", s, expected, call<Cell, T>(s, from, together(2 * s.D + 1)));
}

// Fails at the first piece of memory, at the second, and so on, in steps that grow.
template <class Cell, class T>
void test_out_of_memory(const Shape& s) {
  const Tensors<double> from = make<Cell>(s);
  const Tensors<T> expected = call<Cell, T>(s, from, in_turn(1));
  const fastrnn::Parallel parallel = together(3 * s.D);
  for (int64_t pieces = 0;; pieces += 1 + pieces / 8) {
    std::string said;
    left = pieces;
    try {
      call<Cell, T>(s, from, parallel);
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    if (left.exchange(INT64_MAX) >= 0 && said.empty()) break;
    CHECK(said == "no memory", "%d pieces: '%s'", int(pieces), said.c_str());
  }
  expect_same("afterwards", s, expected, call<Cell, T>(s, from, parallel));
}

// `far` is a hidden size whose weights are fetched ahead, `shared` one whose units are shared.
template <class Cell, class T>
void test(int64_t far, int64_t shared) {
  for (const int64_t D : {1, 2}) {
    test<Cell, T>({4, 9, 3, far, far, D, false, false, true, true},
                  Way::kRows);  // some of length 0
    test<Cell, T>({6, 8, 3, far, far, D, true, false, true}, Way::kRows);
    test<Cell, T>({12, 1, 3, shared, shared, D, false, false, true}, Way::kUnits);
  }
  test<Cell, T>({4, 8, 3, 150, 150, 1, false, false, true, false, true, 2, 0.3}, Way::kRows);
  test_out_of_memory<Cell, T>({4, 8, 3, 150, 150, 2, true, false, true});
}

int main() {
  test<emulated::Lstm, float>(265, 190);
#if !defined(__SANITIZE_THREAD__)  // 50 times slower, and one cell does all that threads share
  test<emulated::Gru, double>(215, 190);
  test<emulated::RnnTanh, Bf16>(515, 515);
  // Panels that are cut in depth.
  test<emulated::Lstm, float>({2, 4, 3, 720, 720, 1, false, false, true}, Way::kSlices);
  test<emulated::Lstm, float>({3, 8, 3, 740, 370, 1, false, true, true, true}, Way::kRows);
  test_out_of_memory<emulated::Lstm, float>({3, 8, 3, 90, 30, 2, true, true, true});
  test_out_of_memory<emulated::Lstm, float>({12, 1, 3, 190, 190, 2, false, false, true});
#endif
  return report("test_threads");
}
