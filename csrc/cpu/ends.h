// The end of a row that fills no register: loads and stores of its first lanes.
#pragma once

#include "cpu/halves.h"

namespace FASTRNN_NAMESPACE {

// The first n lanes, n < lanes; the others are zero and their memory is not touched. Where there is
// no instruction for that it is out of line, since inlined at the end of every row it takes a fifth
// of the compile time.
template <class V, class S>
FASTRNN_NOINLINE V load_lanes(const S* p, int64_t n) {
  constexpr int kCount = sizeof(V) / sizeof(Scalar<V>);
  S lane[kCount] = {};
  for (int64_t width = kCount / 2, i = 0; width > 0; width /= 2)
    if (n & width) {
      for (int64_t l = 0; l < width; ++l) lane[i + l] = p[i + l];
      i += width;
    }
  return load<V>(lane);
}
template <class V, class S>
FASTRNN_NOINLINE void store_lanes(S* p, V v, int64_t n) {
  constexpr int kCount = sizeof(V) / sizeof(Scalar<V>);
  S lane[kCount];
  store<V>(lane, v);
  int64_t i = 0;
  FASTRNN_UNROLL
  for (int64_t width = kCount / 2; width > 0; width /= 2)
    if (n & width) {
      memcpy(p + i, lane + i, width * sizeof(S));
      i += width;
    }
}
template <class V, class S>
FASTRNN_INLINE V load_part(const S* p, int64_t n) {
#if defined(FASTRNN_LOAD_PART_4)
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 4) return (V)FASTRNN_LOAD_PART_4(p, n);
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 8) return (V)FASTRNN_LOAD_PART_8(p, n);
#endif
#if defined(FASTRNN_LOAD_PART_2)
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 2) {
    const auto halves = FASTRNN_LOAD_PART_2(p, n);
    S lane[kLanes<S>];
    memcpy(lane, &halves, sizeof(lane));
    return load<V>(lane);
  }
#endif
  return load_lanes<V>(p, n);
}
template <class V, class S>
FASTRNN_INLINE void store_part(S* p, V v, int64_t n) {
#if defined(FASTRNN_STORE_PART_4)
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 4) return FASTRNN_STORE_PART_4(p, v, n);
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 8) return FASTRNN_STORE_PART_8(p, v, n);
#endif
#if defined(FASTRNN_STORE_PART_2)
  if constexpr (std::is_same_v<V, Vec<S>> && sizeof(S) == 2) {
    S lane[kLanes<S>];
    store<V>(lane, v);
    return FASTRNN_STORE_PART_2(p, lane, n);
  }
#endif
  store_lanes<V>(p, v, n);
}

// v with zeros in the lanes from n on.
template <class V>
FASTRNN_NOINLINE V first_lanes(V v, int64_t n) {
  Scalar<V> lane[sizeof(V) / sizeof(Scalar<V>)];
  store<V>(lane, v);
  return load_part<V>(lane, n);
}

}  // namespace FASTRNN_NAMESPACE
