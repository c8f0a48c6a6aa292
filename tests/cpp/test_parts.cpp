// Products of floats in parts, with emulated tiles: that the parts of a float are its sum, that
// sums are at least as near as those of FMAs, or, of fewer parts, as near as these are to the
// floats, that a number which has no parts is noticed, and from how many rows on parts are taken.
#include <utility>

#include "parts.h"

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

// What one part of two leaves out of the product of two numbers, and two of three, as a share of
// it: at most, and the bounds of the root of the mean square.
struct LeftOut {
  double most, least_mean, most_mean;
};
constexpr LeftOut kLeftOut[] = {{0x1p-7, 0x1p-10, 0x1p-8}, {0x1p-15, 0x1p-19, 0x1p-16}};

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
  emulated::Panels<float, Parts, 4, 1, Transposed> panels(w.data(), k, n, true);
  Error fused, of[emulated::kParts];  // the latter of one, two and three parts
  double squares_of_terms = 0;
  for (int64_t p = 0; p < panels.count(); ++p) {
    panels.keep(p);
    const int64_t columns = std::min<int64_t>(64, n - p * 64);
    std::vector<float> out[emulated::kParts];
    for (int used = 1; used <= emulated::kParts; ++used) {
      const emulated::Multiplying<Parts> multiplying(used);
      const auto rows = [&](int64_t first, int64_t count) {
        std::vector<float> result(count * 64, std::nanf(""));
        emulated::multiply<Parts, 4>(&left[first * ld], ld, count, k, panels.get(p), nullptr,
                                     init.data(), 0, result.data(), 64);
        return result;
      };
      out[used - 1] = rows(0, m);
      CHECK(memcmp(rows(m - 1, 1).data(), &out[used - 1][(m - 1) * 64], columns * 4) == 0,
            "the last row of %d alone has other bits, %d parts", int(m), used);
    }
    for (int64_t r = 0; r < m; ++r)
      for (int64_t j = 0; j < columns; ++j) {
        double exact = 0, sizes = 0;
        float sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          const double term = double(a[r * k + i]) * weight(i, p * 64 + j);
          exact += term;
          sizes += std::abs(term);
          squares_of_terms += term * term;
          sum = std::fma(a[r * k + i], weight(i, p * 64 + j), sum);
        }
        fused.add(sum - exact);
        for (int i = 0; i < emulated::kParts; ++i) of[i].add(out[i][r * 64 + j] - exact);
        for (int i = 0; i < 2; ++i)
          CHECK(std::abs(out[i][r * 64 + j] - exact) <= sizes * (kLeftOut[i].most + k * 0x1p-24),
                "%d parts: %g in place of %g", i + 1, out[i][r * 64 + j], exact);
      }
  }
  for (int i = 0; i < 2; ++i) {
    const double mean = std::sqrt(of[i].squares / squares_of_terms);
    const auto& [_, least, most] = kLeftOut[i];
    CHECK(mean <= most && (mean >= least || data == Data::kCancelling),
          "%d x %d x %d, data %d, %d parts: mean error %g", int(m), int(k), int(n), int(data),
          i + 1, mean);
  }
  const Error& parts = of[2];
  // Of a short sum, or one whose terms cancel as they come, the products that are left out are the
  // most of it.
  const bool few = k < 128;
  const double most = few || data == Data::kCancelling ? 4 : 1;
  const double squares = few ? (m < 16 ? 3 : 1.5) : 1;
  CHECK(parts.most <= most * fused.most && parts.squares <= squares * fused.squares,
        "%d x %d x %d, data %d: error %g, rms %g; of FMAs %g, %g", int(m), int(k), int(n),
        int(data), parts.most, std::sqrt(parts.squares / m / n), fused.most,
        std::sqrt(fused.squares / m / n));
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
  const auto least = [](int64_t outputs, int64_t depth, int parts) {
    int64_t rows = 1;
    while (!fastrnn::cpu::parts_pay({rows, outputs, depth, 4}, parts)) ++rows;
    return rows;
  };
  const struct {
    int64_t outputs, depth, rows[3];  // of one, two and three parts
  } table[] = {{1024, 256, {4, 8, 16}},  {2048, 512, {4, 16, 32}},   {4096, 1024, {4, 19, 64}},
               {1200, 256, {4, 8, 16}},  {1280, 256, {4, 8, 32}},    {1840, 256, {4, 8, 32}},
               {1856, 256, {4, 16, 32}}, {2048, 544, {4, 16, 64}},   {3072, 512, {4, 16, 64}},
               {3072, 544, {4, 19, 64}}, {16384, 4096, {4, 19, 64}}, {32, 8, {16, 32, 64}},
               {2600, 650, {5, 20, 67}}};
  for (const auto& [outputs, depth, rows] : table)
    for (const int parts : {1, 2, 3})
      CHECK(least(outputs, depth, parts) == rows[parts - 1], "%d x %d, %d parts: from %d rows",
            int(outputs), int(depth), parts, int(least(outputs, depth, parts)));
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
  test_finite();
  test_rule();
  return report("test_parts");
}
