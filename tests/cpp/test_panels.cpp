// Where a packed panel of several gates holds which number of the matrix: also the last one, whose
// few units lie without gaps between the gates if they fill fewer registers so.
#include "check.h"

#define FASTRNN_NAMESPACE wide
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#include "cpu/panels.h"

using namespace wide;

// Groups gates of `units` units each, with a depth of k.
template <class S, class O, int Groups>
void gates(int64_t units, int64_t k) {
  const std::vector<float> numbers = uniform_vector<float>(Groups * units * k);
  std::vector<S> w(numbers.size());
  for (size_t i = 0; i < w.size(); ++i) store<float>(&w[i], numbers[i]);
  Panels<S, O, Groups, Groups, true> panels(w.data(), k, units, true);
  const int64_t lanes = kLanes<O>, left = units % lanes;
  CHECK(panels.count() == ceil_div(units, lanes), "%d panels", int(panels.count()));
  for (int64_t p = 0; p < panels.count(); ++p) {
    panels.keep(p);
    const Panel<O> panel = panels.get(p);
    const int64_t here = min(lanes, units - p * lanes);
    const int64_t least = max(2, ceil_div(Groups * here, lanes));
    const bool closed = least < Groups;
    CHECK(panel.fewer == (closed ? least : 0), "%d registers of %d units", panel.fewer, int(units));
    CHECK(panel.ld == (closed ? least : Groups) * lanes, "rows of %d", int(panel.ld));
    const int64_t apart = panels.apart(p * lanes);
    CHECK(apart == (closed ? left : lanes), "gates of %d units %d apart", int(units), int(apart));
    for (int64_t i = 0; i < round_up(k, kTerms<O>); ++i) {
      std::vector<float> due(panel.ld);
      for (int64_t g = 0; g < Groups && i < k; ++g)
        for (int64_t u = 0; u < here; ++u)
          due[g * apart + u] = load<float>(&w[(g * units + p * lanes + u) * k + i]);
      const int64_t pair = i / kTerms<O> * kTerms<O>;
      for (int64_t j = 0; j < panel.ld; ++j) {
        const O* const at = panel.data + pair * panel.ld + j * kTerms<O> + i % kTerms<O>;
        CHECK(load<float>(at) == due[j], "unit %d of %d at k = %d", int(j), int(units), int(i));
      }
    }
  }
}

int main() {
  for (int64_t units = 1; units <= 70; ++units)
    for (const int64_t k : {1, 2, 17, 40}) {
      gates<float, float, 4>(units, k);
      gates<float, float, 3>(units, k);
      gates<Bf16, Bf16, 4>(units, k);
      gates<Bf16, Bf16, 3>(units, k);
    }
  return report("panels");
}
