// A loop over time, ready to be launched: which schedule it takes, and graphs of what repeats.
#pragma once

#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/loop.h"

namespace fastrnn::cuda {

#if defined(FASTRNN_EMULATED)
namespace emulate {
void synchronize();
}
inline void launched() { emulate::synchronize(); }  // before anyone reads what kernels write
#else
inline void launched() {}
#endif

// How a call is to be made, beside what it computes.
struct How {
  Dtype dtype;
  // "auto"; "auto persistent", of these and that what takes least time; "library"; "stepwise";
  // "persistent"; or "persistent 32 3", of so many units and rows, where there is no projection
  std::string schedule;
  uintptr_t stream;  // a cudaStream_t of the current device, torch's current stream
  bool repeats;      // whether launches that repeat may be replayed as a graph
};

// The schedule of a loop whose steps are these products.
Plan choose_plan(const How& how, const Loop& loop, const std::vector<ProductSize>& products,
                 int64_t batch, int64_t directions, bool backward);

// Runs `chain`, of so many launches, on the stream of `how`, or replays what it launched before
// under the same key. It must not allocate.
void replay(const How& how, const std::string& key, int64_t launches,
            const std::function<void(uintptr_t stream)>& chain);

// All launches of a loop.
template <class Steps>
class Runner {
 public:
  Runner(const How& how, const Loop& loop, const Groups& groups, const Steps& steps)
      : how_(how), loop_(loop), groups_(groups), steps_(steps) {}

  void operator()() const {
    if (steps_.size.batch == 0) return;  // else a graph of nothing
    if (groups_.blocks > 0) {
      launch_all(loop_, steps_, groups_, reinterpret_cast<void*>(how_.stream));
      return launched();
    }
    replay(how_, key(), launches(), [this](uintptr_t stream) { all_steps(stream); });
  }
  // In the library schedule, whose products `products` makes: those before the launch of a part of
  // step i.
  template <class F>
  void with_products(F products) const {
    if (steps_.size.batch == 0) return;
    replay(how_, key(), 2 * launches(), [&](uintptr_t stream) {
      for (int64_t k = 0; k < steps_.size.steps; ++k)
        for (const Part part : parts()) {
          products(at(k), part);
          launch_step(loop_, steps_, at(k), part, false, reinterpret_cast<void*>(stream));
          launched();
        }
    });
  }

 private:
  static constexpr bool kForward = std::is_same_v<Steps, Forward>;

  int64_t at(int64_t k) const { return kForward ? k : steps_.size.steps - 1 - k; }
  std::vector<Part> parts() const {
    if (!steps_.projected) return {Part::kCell};
    return kForward ? std::vector{Part::kCell, Part::kState}
                    : std::vector{Part::kState, Part::kCell};
  }
  int64_t launches() const { return steps_.size.steps * static_cast<int64_t>(parts().size()); }
  void all_steps(uintptr_t stream) const {
    bool overlaps = false;
    for (int64_t k = 0; k < steps_.size.steps; ++k)
      for (const Part part : parts()) {
        launch_step(loop_, steps_, at(k), part, overlaps, reinterpret_cast<void*>(stream));
        overlaps = true;
      }
    launched();
  }
  // Everything that the launches are given, addresses included; no byte of it is left unset.
  std::string key() const {
    static_assert(std::is_trivially_copyable_v<Steps>);
    std::string key{kForward, static_cast<char>(loop_.cell), static_cast<char>(loop_.dtype),
                    loop_.library};
    key.append(reinterpret_cast<const char*>(&steps_), sizeof steps_);
    return key;
  }

  const How& how_;
  const Loop loop_;
  const Groups groups_;
  const Steps& steps_;
};

}  // namespace fastrnn::cuda
