// tasks.h and team.h: everything is done once and in order, whoever comes when; and a task or a
// slice that throws keeps nobody waiting and ends no process.
#include "cpu/team.h"

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/tasks.h"
#include "together.h"

using fastrnn::Parallel;
using fastrnn::cpu::run_tasks;
using fastrnn::cpu::Team;

template <class F>
void share(const Parallel& parallel, int64_t n, F&& body) {
  run_tasks(parallel, n, [](int64_t i, void* f) { (*static_cast<F*>(f))(i); }, &body);
}

void tasks(const Parallel& parallel, int64_t n) {
  for (int64_t failing = 0; failing <= n; ++failing) {
    std::atomic<int64_t> ran = 0;
    std::string said;
    try {
      share(parallel, n, [&](int64_t i) {
        ++ran;
        if (i < failing) throw std::runtime_error("of a task");
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    CHECK(ran == n && said == (failing ? "of a task" : ""), "%d of %d tasks fail", int(failing),
          int(n));
  }
}

// Two calls of `phases` phases each; slice `failing` of phase `failing` throws, if there is one.
void team(const Parallel& parallel, int64_t members, int64_t each, bool late, int64_t failing) {
  constexpr int64_t kPhases = 40;
  Team team(members, each);
  const int64_t slices = team.slices();
  const std::unique_ptr<std::atomic<int>[]> done(new std::atomic<int>[2 * kPhases * slices]());
  std::atomic<int> errors = 0;
  for (int64_t call = 0; call < 2; ++call) try {
      share(parallel, members, [&](int64_t member) {
        if (late && member > 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
        team.run(member, call * kPhases, (call + 1) * kPhases, [&](int64_t phase, int64_t slice) {
          for (int64_t i = 0; i < slices && phase > 0; ++i)
            CHECK(done[(phase - 1) * slices + i] == 1, "phase %d began early", int(phase));
          ++done[phase * slices + slice];
          if (phase == failing && slice == failing % slices) throw std::runtime_error("of a slice");
        });
      });
    } catch (const std::runtime_error&) {
      ++errors;
    }
  CHECK(errors == (failing >= 0), "%d errors", errors.load());
  // The thread that fails leaves; the others have done what it would have.
  for (int64_t i = 0; i < 2 * kPhases * slices; ++i)
    CHECK(done[i] == 1, "slice %d of phase %d: %d times", int(i % slices), int(i / slices),
          done[i].load());
}

int main() {
  for (const int64_t n : {1, 2, 3, 4}) tasks(together(n), n), tasks(in_turn(n), n);
  for (const int64_t members : {2, 3, 4})
    for (const int64_t each : {1, 4})
      for (const int64_t failing : {-1, 0, 7, 79}) {
        team(together(members), members, each, false, failing);
        team(together(members), members, each, true, failing);
        team(in_turn(members), members, each, false, failing);
      }
  return report("test_team");
}
