// The host emulation of device.cuh: what its names compute. Layouts of fragments are written down
// here once more, element by element as the PTX manual has them.
#define FASTRNN_EMULATED
#include "cuda/device.cuh"

#include <cmath>
#include <limits>

#include "check.h"

using namespace fastrnn::cuda;

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  launch(kernel, shape, nullptr, arguments...);
  emulate::synchronize();
}

FASTRNN_KERNEL void places_kernel(int* out) {
  int* mine = out + 3 * (block() * 96 + thread());
  mine[0] = lane();
  mine[1] = warp();
  mine[2] += 1;
}
void places() {
  std::vector<int> out(3 * 96 * 3);
  run(places_kernel, {.blocks = 3, .threads = 96}, out.data());
  for (int i = 0; i < 3 * 96; ++i) {
    const int* mine = &out[3 * i];
    CHECK(mine[0] == i % 32 && mine[1] == i % 96 / 32 && mine[2] == 1, "%d", i);
  }
}

// The nearest value of a format with `bits` of fraction and this least exponent, ties to even;
// overflow not considered.
double nearest(double x, int bits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1., std::max(std::ilogb(x), least) - bits);
  return std::nearbyint(x / unit) * unit;
}
void conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double exact =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) exact = fraction ? NAN : INFINITY;
    if (bits >> 15) exact = -exact;
    const float value = to_float(half);
    CHECK(std::isnan(exact) ? std::isnan(value)
                            : value == exact && std::signbit(value) == std::signbit(exact),
          "half %04x", bits);
    CHECK(std::isnan(exact) || from_float<Half>(value).bits == bits, "half %04x", bits);
    const float wide = to_float(Bfloat16{static_cast<uint16_t>(bits)});
    CHECK(std::isnan(wide) || from_float<Bfloat16>(wide).bits == bits, "bfloat16 %04x", bits);
  }
  for (int i = 0; i < 200000; ++i) {
    const float x = static_cast<float>(std::ldexp(uniform(), static_cast<int>(uniform(-28, 16))));
    for (const float y : {x, std::bit_cast<float>(std::bit_cast<uint32_t>(x) & ~0xfffu)}) {  // ties
      CHECK(to_float(from_float<Half>(y)) == nearest(y, 10, -14), "half of %.9g", y);
      CHECK(to_float(from_float<Bfloat16>(y)) == nearest(y, 7, -126), "bfloat16 of %.9g", y);
      CHECK(std::abs(to_tf32(y) - y) <= std::ldexp(1., std::ilogb(y) - 11), "tf32 of %.9g", y);
      CHECK((std::bit_cast<uint32_t>(to_tf32(y)) & 0x1fff) == 0, "tf32 of %.9g", y);
    }
  }
  CHECK(to_tf32(1 + 0x1p-11f) == 1 + 0x1p-10f, "tf32: ties go away from zero");
  CHECK(std::isinf(to_float(from_float<Half>(65520.f))), "overflow");
  CHECK(to_float(from_float<Half>(65519.f)) == 65504, "no overflow");
  for (const float x : {NAN, -NAN, std::bit_cast<float>(0x7f800001u)})
    CHECK(std::isnan(to_float(from_float<Half>(x))) && std::isnan(to_tf32(x)) &&
              std::isnan(to_float(from_float<Bfloat16>(x))),
          "NaN lost");
  CHECK(to_compute(Half{0x3c00}) == 1 && to_compute(0.1) == 0.1, "to_compute");
  CHECK(from_compute<Half>(1).bits == 0x3c00 && from_compute<double>(0.1) == 0.1, "from_compute");
}

template <class T>
FASTRNN_KERNEL void packs_kernel(const T* in, T* out) {
  constexpr int kCount = kPack<T>;
  store(out + kCount * thread(), load16(in + kCount * thread()));
  out += kCount * 32;
  store(out + 2 * thread(), load_uncached<2>(in + 2 * thread()));
  store(out + 2 * 32 + thread(), load<1>(in + thread()));
}
template <class T>
void packs() {
  constexpr int kBig = 32 * kPack<T>;
  std::vector<T> in(kBig), out(kBig + 96);
  std::vector<unsigned char> bytes(kBig * sizeof(T));
  for (auto& byte : bytes) byte = static_cast<unsigned char>(uniform(0, 256));
  std::memcpy(in.data(), bytes.data(), bytes.size());
  run(packs_kernel<T>, {.blocks = 1, .threads = 32}, in.data(), out.data());
  CHECK(std::memcmp(&out[0], &in[0], bytes.size()) == 0, "16 bytes");
  CHECK(std::memcmp(&out[kBig], &in[0], 64 * sizeof(T)) == 0, "pairs");
  CHECK(std::memcmp(&out[kBig + 64], &in[0], 32 * sizeof(T)) == 0, "singles");
}

template <class T>
struct Storage {
  using type = T;
};
template <>
struct Storage<Tf32> {
  using type = float;
};
// Position in K of element e of words x[i] of A and B.
template <class Operand>
constexpr bool kIsTf32 = std::is_same_v<Operand, Tf32>;
template <class Operand>
int depth_of(int t, int e, bool second) {
  return kIsTf32<Operand> ? t + 4 * second : 2 * t + e + 8 * second;
}

// One product with fragments that each lane fills from memory by the manual's formulas, and one
// with fragments through shared memory, B in both ways: out[0], out[1] and out[2], [16][8] each.
template <class Operand>
FASTRNN_KERNEL void mma_kernel(const typename Storage<Operand>::type* a,  // [16][K]
                               const typename Storage<Operand>::type* b,  // [16][K] two times 8
                               float* out) {                              // [4][16][8]
  using T = typename Storage<Operand>::type;
  constexpr int kDepth = 32 / sizeof(T), kPitch = 48;
  const int g = lane() / 4, t = lane() % 4;
  float d[4][4] = {};
  for (int i = 0; i < 4; ++i) d[0][i] = lane() / 32.f;  // an accumulator that is not 0

  FragmentA<Operand> fa;
  FragmentB<Operand> fb;
  for (int i = 0; i < 4; ++i) {
    T elements[4 / sizeof(T)];
    for (int e = 0; e < static_cast<int>(4 / sizeof(T)); ++e)
      elements[e] = a[(g + (i % 2 ? 8 : 0)) * kDepth + depth_of<Operand>(t, e, i >= 2)];
    std::memcpy(&fa.x[i], elements, 4);
    for (int e = 0; e < static_cast<int>(4 / sizeof(T)); ++e)
      elements[e] = b[g * kDepth + depth_of<Operand>(t, e, i % 2)];
    std::memcpy(&fb.x[i % 2], elements, 4);
  }
  mma(d[0], fa, fb);

  char* shared = shared_memory();
  for (int i = lane(); i < 16 * kDepth; i += 32) {
    const int at = i / kDepth * kPitch + i % kDepth * static_cast<int>(sizeof(T));
    std::memcpy(shared + at, a + i, sizeof(T));
    std::memcpy(shared + 16 * kPitch + at, b + i, sizeof(T));
  }
  block_barrier();
  fa = load_fragment_a<Operand>(shared + lane() % 16 * kPitch + lane() / 16 * 16);
  shared += 16 * kPitch;
  fb = load_fragment_b<Operand>(shared + lane() % 8 * kPitch + lane() / 8 % 2 * 16);
  mma(d[1], fa, fb);
  FragmentB<Operand> both[2];
  load_fragment_b(both, shared + (lane() % 8 + lane() / 16 * 8) * kPitch + lane() / 8 % 2 * 16);
  mma(d[2], fa, both[0]);
  mma(d[3], fa, both[1]);
  for (int n = 0; n < 4; ++n)
    for (int i = 0; i < 4; ++i) out[(n * 16 + g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[n][i];
}
template <class Operand>
void product() {
  using T = typename Storage<Operand>::type;
  constexpr int kDepth = 32 / sizeof(T);
  std::vector<T> a(16 * kDepth), b(16 * kDepth);
  const auto fill = [](T& x) {
    x = from_float<T>(uniform<float>());
    if constexpr (kIsTf32<Operand>)  // what is below Tf32 must not count
      x = std::bit_cast<float>(std::bit_cast<uint32_t>(to_tf32(x)) | 0x1fff);
  };
  for (T& x : a) fill(x);
  for (T& x : b) fill(x);
  const auto value = [](T x) {
    if constexpr (kIsTf32<Operand>)
      return double{std::bit_cast<float>(std::bit_cast<uint32_t>(x) & ~0x1fffu)};
    else
      return double{to_float(x)};
  };
  std::vector<float> out(4 * 16 * 8, NAN);
  run(mma_kernel<Operand>, {.blocks = 1, .threads = 32, .shared = 2 * 16 * 48}, a.data(), b.data(),
      out.data());
  for (int n = 0; n < 4; ++n)
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        double exact = n == 0 ? (i % 8 * 4 + j / 2) / 32. : 0;  // by the lane that holds it
        for (int k = 0; k < kDepth; ++k)
          exact += value(a[i * kDepth + k]) * value(b[((n == 3) * 8 + j) * kDepth + k]);
        CHECK(std::abs(out[(n * 16 + i) * 8 + j] - exact) < 4e-6, "%d %d %d", n, i, j);
      }
}

// ldmatrix by the manual: thread l gets elements 2 (l % 4) and 2 (l % 4) + 1, of 16 bits, of row
// l / 4 of each matrix, whose row r is where lane 8 m + r said.
FASTRNN_KERNEL void matrices_kernel(uint32_t* out) {  // [lane][10]
  auto* shared = reinterpret_cast<uint32_t*>(shared_memory());
  for (int i = lane(); i < 128; i += 32) shared[i] = static_cast<uint32_t>(i);
  block_barrier();
  const FragmentA<Half> a = load_fragment_a<Half>(shared + 4 * (31 - lane()));
  FragmentB<Half> b[2];
  load_fragment_b(b, shared + 4 * (31 - lane()));
  // Lanes from 16 on give no address that counts.
  const FragmentB<Half> c = load_fragment_b<Half>(shared + 4 * (lane() < 16 ? lane() ^ 1 : 1000));
  const uint32_t all[] = {a.x[0],    a.x[1],    a.x[2],    a.x[3], b[0].x[0],
                          b[0].x[1], b[1].x[0], b[1].x[1], c.x[0], c.x[1]};
  std::memcpy(out + 10 * lane(), all, sizeof all);
}
void matrices() {
  std::vector<uint32_t> out(320);
  run(matrices_kernel, {.blocks = 1, .threads = 32, .shared = 512}, out.data());
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 10; ++i) {
      const int lane = 8 * (i % 4) + l / 4;
      const int word = 4 * (i < 8 ? 31 - lane : (8 * (i - 8) + l / 4) ^ 1) + l % 4;
      CHECK(static_cast<int>(out[10 * l + i]) == word, "lane %d word %d", l, i);
    }
}

int main() {
  places();
  conversions();
  packs<float>();
  packs<double>();
  packs<Half>();
  packs<Bfloat16>();
  product<Half>();
  product<Bfloat16>();
  product<Tf32>();
  matrices();
  return report("test_emulation");
}
