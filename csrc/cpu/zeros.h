// Whether numbers are zero, and whether they stay so in a product: 0 inf and 0 NaN are NaN.
#pragma once

#include "cpu/schedule.h"

namespace FASTRNN_NAMESPACE {

// Registers that came by: whether a lane of one was not zero. A NaN is not.
template <class V>
class NonZero {
  typename Shape<V>::bits seen_{};

 public:
  FASTRNN_INLINE void add(V v) { seen_ |= bit_cast<decltype(seen_)>(v); }
  FASTRNN_INLINE bool any() const {
    using Word = typename Shape<Scalar<V>>::bits;
    Word lanes[sizeof(V) / sizeof(Word)], all = 0;
    memcpy(lanes, &seen_, sizeof(lanes));
    for (const Word lane : lanes) all |= lane;
    return all << 1 != 0;  // without the signs
  }
};

// Whether all of `count` numbers are zero.
template <class T, class S>
bool zero(const S* numbers, int64_t count) {
  NonZero<Vec<T>> seen;
  for (int64_t at = 0; at < count; at += kLanes<T>) seen.add(Lane<T>(at, count).load_from(numbers));
  return !seen.any();
}

// Whether all of them are finite.
template <class T, class S>
bool finite(const S* numbers, int64_t count) {
  NonZero<Vec<T>> products;
  for (int64_t at = 0; at < count; at += kLanes<T>)
    products.add(Lane<T>(at, count).load_from(numbers) * 0);
  return !products.any();
}

// The same, of as many numbers as threads share.
template <class T, class S>
bool all_finite(const Parallel& parallel, const S* numbers, int64_t count) {
  constexpr int64_t kWorth = 1 << 16;
  const int64_t shares = count < kWorth ? 1 : parallel.threads;
  const Buffer<uint8_t> found(shares);
  run(parallel, shares, [&](int64_t share) {
    const Range own = piece(count, share, shares, kLanes<T>);
    found[share] = finite<T>(numbers + own.first, own.count());
  });
  bool all = true;
  for (int64_t share = 0; share < shares; ++share) all &= found[share] != 0;
  return all;
}

}  // namespace FASTRNN_NAMESPACE
