// load_part and store_part of the instruction set that the including test has turned to, before and
// after memory that nobody may touch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "cpu/ends.h"

namespace FASTRNN_NAMESPACE {

// The last bytes of a page before one that cannot be read or written.
class Edge {
 public:
  Edge() : page_(sysconf(_SC_PAGESIZE)) {
    memory_ = static_cast<char*>(
        mmap(nullptr, 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(memory_ != MAP_FAILED && mprotect(memory_ + page_, page_, PROT_NONE) == 0, "no pages");
  }
  ~Edge() { munmap(memory_, 2 * page_); }
  char* end() const { return memory_ + page_; }

 private:
  const long page_;
  char* memory_;
};

template <class S>
void ends() {
  using V = Vec<S>;
  constexpr int kCount = kLanes<S>;
  const Edge from, to;
  for (int n = 0; n < kCount; ++n) {
    S* const in = reinterpret_cast<S*>(from.end()) - n;
    S* const out = reinterpret_cast<S*>(to.end()) - n;
    std::memset(from.end() - 128, 0xff, 128);
    std::memset(to.end() - 128, 0x5a, 128);
    for (int l = 0; l < n; ++l) store<Compute<S>>(in + l, static_cast<Compute<S>>(l + 1));
    const V v = load_part<V>(in, n);
    for (int l = 0; l < kCount; ++l)
      CHECK(v[l] == (l < n ? l + 1 : 0), "%d of them: lane %d", n, l);
    store_part<V>(out, v, n);
    CHECK(std::memcmp(in, out, n * sizeof(S)) == 0, "%d of them: stored", n);
    // A store in the middle of a page touches neither what is before nor what follows.
    char middle[3 * sizeof(V)], expected[sizeof(middle)];
    std::memset(middle, 0x5a, sizeof(middle));
    std::memset(expected, 0x5a, sizeof(expected));
    std::memcpy(expected + sizeof(V), in, n * sizeof(S));
    store_part<V>(reinterpret_cast<S*>(middle + sizeof(V)), v, n);
    CHECK(std::memcmp(middle, expected, sizeof(middle)) == 0, "%d of them: beside it", n);
  }
}

}  // namespace FASTRNN_NAMESPACE

void every_end() {
  using namespace FASTRNN_NAMESPACE;
  ends<float>();
  ends<double>();
  ends<fastrnn::Bf16>();
}
