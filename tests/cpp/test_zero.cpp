// Nothing to do: every function that takes a number of rows, columns, units, steps or panels,
// called with zero of them. Nothing is read or written then: pointers are null, or to numbers that
// stay.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#if !defined(FASTRNN_SINGLE_OPERANDS)
#define FASTRNN_PAIRS
#define FASTRNN_TILES
#endif
#include "cpu/isa.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "cpu/kernels.h"

using namespace emulated;

// Numbers that a call must leave as they are.
template <class T>
class Untouched {
  std::vector<T> v_ = std::vector<T>(4096);
  std::vector<T> before_ = v_;

 public:
  ~Untouched() {
    CHECK(std::memcmp(v_.data(), before_.data(), v_.size() * sizeof(T)) == 0, "written");
  }
  operator T*() { return v_.data(); }
};

template <class O, int NV>
void products() {
  using T = Compute<O>;
  Untouched<O> a;
  Untouched<T> out;
  const std::vector<O> panel(64 * kWidth<O, NV>);
  for (const bool half : {false, true}) {
    const Panel<O> right{{panel.data(), kWidth<O, NV>}, half};
    for (const O* next : {static_cast<const O*>(nullptr), panel.data()})  // near, and far
      multiply<O, NV>(a, 1, 0, 32, right, next, out, 0, out, 1);
    micro_of<O, NV>(0, right)(a, 1, right, 32, out, 0, out, 1, {});
  }
  const Tiles<O, NV> tiles(0);
  CHECK(tiles.count == 0, "%d tiles", int(tiles.count));
  CHECK((ahead_of<O, NV>(panel.data(), 0).stride == 0), "fetches for no rows");
  for (const int64_t k : {0, 1, 100, 100'000}) {
    CHECK((panel_depth<O, NV>(k, 0) == k), "a panel of %d is cut for no rows", int(k));
    CHECK((panel_depth<O, NV>(0, k) == 0), "depth of nothing");
  }
}

template <class S, class O, int NV, int Groups, bool Transposed>
void panels(const S* weight, int64_t depth, int64_t columns) {
  for (const bool keep : {false, true}) {
    const Panels<S, O, NV, Groups, Transposed> panels(weight, depth, columns, keep);
    CHECK(columns > 0 || (panels.count() == 0 && !panels.packed), "panels of no columns");
    CHECK(weight || (panels.count() == 0 && panels.scratch() == 0), "panels of no weight");
    CHECK(panels.far(panels.count()) == nullptr, "nothing is far");
    std::vector<O> out(panels.stride() + 1, O{});
    panels.pack(0, out.data());  // a panel past the end holds zeros
    const O none{};
    const auto zero = [&](const O& x) { return std::memcmp(&x, &none, sizeof(O)) == 0; };
    CHECK(std::all_of(out.begin(), out.end(), zero), "a panel of nothing");
  }
}

template <class S>
void sums() {
  using O = Operand<S>;
  using T = Compute<S>;
  using Kept = std::conditional_t<kInParts<O>, T, O>;
  Untouched<T> c;
  Untouched<Kept> a;
  const std::vector<S> row(4096);
  const auto b = [&](int64_t) -> const S* { return row.data(); };
  const auto left = [&](int64_t) -> const Kept* { return a; };
  for (const bool add : {false, true}) {
    for (const int64_t n : {0, 5, 200}) {
      outer<O>(70, {3, 3}, n, static_cast<const Kept*>(a), 64, b, static_cast<T*>(c), add);
      outer<O>(0, {0, 7}, n, static_cast<const Kept*>(a), 64, b, static_cast<T*>(c), add);
    }
    outer<O>(70, {0, 7}, 0, static_cast<const Kept*>(a), 64, b, static_cast<T*>(c), add);
    outer<O>(0, {0, 0}, 0, static_cast<const Kept*>(nullptr), 0, b, static_cast<T*>(nullptr), add);
    column_sums(70, {3, 3}, left, static_cast<T*>(c), add);
    column_sums(0, {0, 0}, left, static_cast<T*>(nullptr), add);
    column_sums(0, {0, 70}, left, static_cast<T*>(c), add);  // of zeros: zero
  }
  Untouched<O> arranged;
  constexpr int64_t kRows = kTileRows<O, (kTiled<O> ? kWide : kNarrow)>;
  const Kept* const matrix = a;
  O* const to = arranged;
  arrange<kRows, O>(matrix, 64, 0, 8, to, 0);
  arrange<kRows, O>(matrix, 64, 8, 0, to, 8);

  const S* const rows[] = {row.data()};
  Vec<T> sum;
  dots<T, 1, false, S, S>({row.data(), 0, rows, 0}, {}, kLanes<T>, &sum, nullptr);  // no terms
  T lanes[kLanes<T>];
  store<Vec<T>>(lanes, sum);
  for (const T each : lanes) CHECK(each == 0, "a sum of nothing");
}

template <class To, class From>
void copies() {
  copy(static_cast<To*>(nullptr), static_cast<const From*>(nullptr), 0);
}

void pieces() {
  const auto empty = [](Range range) { return range.count() == 0; };
  for (const int64_t n : {1, 3})
    for (int64_t i = 0; i < n; ++i) CHECK(empty(piece(0, i, n, 8)), "of nothing");
  CHECK(empty(piece(5, 2, 3, 8)), "less than a unit for each");
  const Lane<float> lane(0, 0), past(64, 7);
  CHECK(lane.valid == 0 && past.valid == 0, "a lane of no columns");
  float nothing = 7;
  lane.store_to(&nothing, lane.load_from(static_cast<const float*>(nullptr)));
  CHECK(nothing == 7, "a lane of no columns is written");

  fastrnn::cpu::Team none(0, 0), idle(2, 1), sliceless(2, 0);
  none.run(0, 0, 3, [](int64_t, int64_t) { CHECK(false, "a slice of no member"); });
  idle.run(0, 5, 5, [](int64_t, int64_t) { CHECK(false, "a slice of no phase"); });
  sliceless.run(1, 0, 3, [](int64_t, int64_t) { CHECK(false, "a slice of none"); });
  const Parallel alone{1, nullptr};
  run(alone, 0, [](int64_t) { CHECK(false, "a task of none"); });

  for (const fastrnn::cpu::StepWork work :
       {fastrnn::cpu::StepWork{0, 0, 0, 4}, {0, 4000, 1000, 4}, {8, 0, 1000, 4}, {8, 4000, 0, 4}})
    for (const int64_t threads : {0, 1, 3}) {
      const fastrnn::cpu::Split split = fastrnn::cpu::split_step(work, threads, 0);
      CHECK(split.rows >= 1 && split.units == 1 && split.slices >= 1, "a split into no pieces");
    }
}

// The order of time of a layer of no steps, or whose steps have no rows, or of rows without a step.
template <class Stored>
void orders(int64_t steps, int64_t batch, int64_t active) {
  const std::vector<int64_t> counts(steps, active), zeros(steps), entries(batch);
  fastrnn::Forward<Stored> f{};
  f.size = {steps,   batch,         3, 3, 3, 2, batch * steps, false, counts.data(), zeros.data(),
            nullptr, entries.data()};
  const Layer<Lstm, Stored> layer(f, Parallel{3, nullptr});
  CHECK(layer.total == 0 && !layer.worth_threads(), "work without rows");
  int64_t padding = 0;
  layer.each_padding_row([&](int64_t) { ++padding; });
  CHECK(padding == steps * batch, "%d rows of padding", int(padding));
  const auto never = [](auto&&...) { CHECK(false, "called"); };
  for (const int64_t b : {0, 1, 5}) {
    const Range range = layer.block(b);
    CHECK(range.count() == (b == 0 ? batch : 0), "block %d: %d", int(b), int(range.count()));
  }
  for (const int64_t rows : {0, 1, 100}) {
    const int64_t chunk = layer.chunk(rows, 0, 0);
    CHECK(chunk == std::min<int64_t>(steps, 1), "a chunk of %d steps", int(chunk));
    CHECK(layer.chunk(rows, 0, 7) >= chunk && layer.chunk(rows, 7, 0) >= chunk, "a shorter chunk");
  }
  if (steps == 0) layer.each_chunk(0, never);
  for (int64_t d = 0; d < 2; ++d) {
    CHECK(layer.rows_of(d, {0, 0}).count() == 0 && layer.rows_of(d, {0, steps}).count() == 0,
          "rows of no step");
    CHECK(layer.active(d, -1) == 0 && layer.active(d, steps) == 0, "rows beyond the ends");
    CHECK(layer.count(d, {0, batch}, {0, steps}) == 0 && layer.count(d, {0, 0}, {0, steps}) == 0,
          "rows of a block");
    layer.each_step(d, {0, batch}, {0, 0}, never);
    layer.each_step(d, {0, batch}, {0, steps},
                    [&](int64_t, int64_t before) { CHECK(before == 0, "rows before"); });
  }
  layer.each_panel(0, {4, 4}, never);
  layer.each_panel(1, {0, 0}, never);
  layer.share(0, never);
}

template <class S>
void all() {
  using O = Operand<S>;
  products<O, kWide>();
  products<O, kNarrow>();
  products<O, 3>();
  const std::vector<S> weight(4096);
  for (const S* w : {static_cast<const S*>(nullptr), weight.data()})
    for (const int64_t depth : {0, 1, 33}) {
      panels<S, O, kWide, 1, false>(w, depth, 0);
      panels<S, O, kWide, 1, true>(w, depth, 0);
      panels<S, O, 4, 4, true>(w, depth, 0);
      if (!w) panels<S, O, 4, 4, true>(w, depth, 5);
    }
  panels<S, O, kWide, 1, true>(weight.data(), 0, 5);
  sums<S>();
  copies<S, Compute<S>>(), copies<Compute<S>, S>(), copies<S, S>();
  orders<S>(0, 0, 0), orders<S>(0, 4, 0), orders<S>(3, 0, 0), orders<S>(3, 4, 0);
}

int main() {
  using fastrnn::cpu::panel_bytes_of;
  CHECK(panel_bytes_of(true, 0x19) == 65536, "Zen 4");
  CHECK(panel_bytes_of(true, 0x1a) == 16384 && panel_bytes_of(false, 0x19) == 16384, "others");
  pieces();
  all<float>();
  all<double>();
  all<Bf16>();
  fastrnn::cpu::give_memory_back(fastrnn::cpu::take_memory(0), 0);
  return report("test_zero");
}
