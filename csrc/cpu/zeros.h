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

// Whether all of `count` numbers are finite.
template <class T, class S>
bool finite(const S* numbers, int64_t count) {
  NonZero<Vec<T>> products;
  for (int64_t at = 0; at < count; at += kLanes<T>)
    products.add(Lane<T>(at, count).load_from(numbers) * 0);
  return !products.any();
}

}  // namespace FASTRNN_NAMESPACE
