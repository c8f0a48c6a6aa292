// Numbers of 16 bits in memory, Bf16 and F16: loads and stores that convert to and from floats.
#pragma once

#include "cpu/vec.h"

namespace FASTRNN_NAMESPACE {

// v, of which the compiler knows nothing more: Clang 16 to 18 crash on some vectors that they see
// turn to bfloat16 or come from it (LLVM's issues 68117 and 83358). It is no instruction.
template <class V>
FASTRNN_INLINE V opaque(V v) {
#if defined(FASTRNN_DPBF16PS) && defined(__clang__) && __clang_major__ < 19
  asm("" : "+v"(v));
#endif
  return v;
}

// The bits of a Bf16 in the lower half of every lane of a V of floats.
template <class V>
FASTRNN_INLINE typename Shape<V>::bits load_bits(const Bf16* p) {
  using Bits = typename Shape<V>::bits;
  typename Shape<V>::halves half;
  memcpy(&half, p, sizeof(half));
  if constexpr (std::is_arithmetic_v<V>) {
    return half;
  } else {
#if defined(FASTRNN_SHUFFLE) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    // One instruction, where GCC 12 makes five of __builtin_convertvector.
    constexpr int kCount = sizeof(V) / sizeof(float);
    return [&]<int... L>(std::integer_sequence<int, L...>) __attribute__((always_inline)) {
      return bit_cast<Bits>(
          __builtin_shufflevector(half, decltype(half){}, (L % 2 ? kCount : L / 2)...));
    }(std::make_integer_sequence<int, 2 * kCount>{});
#else
    return __builtin_convertvector(half, Bits);
#endif
  }
}

// Writes the lower half of every lane.
template <class V>
FASTRNN_INLINE void store_bits(void* p, typename Shape<V>::bits words) {
  typename Shape<V>::halves half;
  if constexpr (std::is_arithmetic_v<V>)
    half = static_cast<uint16_t>(words);
  else
    half = __builtin_convertvector(words, typename Shape<V>::halves);
  memcpy(p, &half, sizeof(half));
}

// V of floats; exact.
template <class V>
FASTRNN_INLINE V load(const Bf16* p) {
  return bit_cast<V>(load_bits<V>(p) << 16);
}

// v, or NaN where it is infinite or a Bf16 would round it to infinity, from 3.3961e38 on.
template <class V>
FASTRNN_INLINE V nan_beyond_bf16(V v) {
  return v + v * 1.002f * 0.0f;
}

// V of floats, rounded to the nearest, of two to the even one; a NaN stays a NaN. The instruction
// takes numbers below 2^-126 for zero. Where floats are rounded for products alone (operands.h),
// one that has no finite Bf16 is NaN.
template <class V>
FASTRNN_INLINE void store(Bf16* p, V v) {
#if defined(FASTRNN_ROUNDS)
  v = nan_beyond_bf16(v);
#endif
#if defined(FASTRNN_CVTNEPS)
  if constexpr (std::is_same_v<V, Vec<float>>) {
    const auto half = opaque(bit_cast<typename Shape<V>::halves>(FASTRNN_CVTNEPS(v)));
    memcpy(p, &half, sizeof(half));
    return;
  }
#endif
  using Bits = typename Shape<V>::bits;
  const Bits bits = bit_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits quiet_nan = (bits >> 16) | 0x40u;
  const Bits words = select(v != v, quiet_nan, rounded);
  store_bits<V>(p, words);
}

// V of floats; exact.
template <class V>
FASTRNN_INLINE V load(const F16* p) {
#if defined(FASTRNN_CVTPH)
  if constexpr (std::is_same_v<V, Vec<float>>) return FASTRNN_CVTPH(p);
#endif
  using Bits = typename Shape<V>::bits;
  constexpr uint32_t kBias = 112u << 23;  // of the exponents of the two types
  const Bits bits = load_bits<V>(reinterpret_cast<const Bf16*>(p));
  const Bits size = (bits & 0x7fffu) << 13, exponent = bits & 0x7c00u;
  // Below the normal numbers, those of 2^-14 on with the same mantissa lead to no denormal float.
  const V normal = bit_cast<V>(size + kBias), beyond = bit_cast<V>(size + 2 * kBias);
  const V below = bit_cast<V>(size + (kBias + (1u << 23))) - 0x1p-14f;
  const V value = select(exponent == 0x7c00u, beyond, select(exponent == 0u, below, normal));
  return bit_cast<V>(bit_cast<Bits>(value) | ((bits & 0x8000u) << 16));
}

// V of floats, rounded to the nearest, of two to the even one; a NaN stays a NaN.
template <class V>
FASTRNN_INLINE void store(F16* p, V v) {
#if defined(FASTRNN_CVTPS)
  if constexpr (std::is_same_v<V, Vec<float>>) {
    const auto half = FASTRNN_CVTPS(v);
    memcpy(p, &half, sizeof(half));
    return;
  }
#endif
  using Bits = typename Shape<V>::bits;
  constexpr uint32_t kBias = 112u << 23, kInfinity = 0x7c00u, kQuietNan = 0x7e00u;
  const Bits bits = bit_cast<Bits>(v), size = bits & 0x7fffffffu;
  const Bits normal = (size + 0xfffu + ((size >> 13) & 1u) - kBias) >> 13;
  // Below the normal numbers a unit is 2^-24, the last place of one half.
  const Bits below = bit_cast<Bits>(bit_cast<V>(size) + 0.5f) - (126u << 23);
  const Bits most = select(normal > kInfinity, Bits{} + kInfinity, normal);
  const Bits number = select(size < (113u << 23), below, most);
  const Bits words = select(v != v, Bits{} + kQuietNan, number) | (bits >> 16 & 0x8000u);
  store_bits<V>(p, words);
}

}  // namespace FASTRNN_NAMESPACE
