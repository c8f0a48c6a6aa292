#include "cpu/programs.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastrnn {

namespace {

const char* const kOps[] = {
#define X(name) #name,
    FASTRNN_OPS(X)
#undef X
};
constexpr int64_t kOpCount = std::size(kOps);

// A code, and what it points at.
struct OwnedCode {
  std::vector<Instruction> instructions;
  std::vector<double> constants;
  std::unique_ptr<bool[]> reads;
  Code code;

  OwnedCode(const GivenCode& given, int64_t planes)
      : instructions(given.instructions.size() / sizeof(Instruction)),
        constants(given.constants),
        reads(new bool[given.reads.size()]) {
    const auto require = [](bool condition, const char* what) {
      if (!condition) throw std::invalid_argument(std::string("not a program: ") + what);
    };
    require(given.instructions.size() % sizeof(Instruction) == 0, "half an instruction");
    require(given.planes == planes && given.planes == static_cast<int64_t>(given.reads.size()),
            "wrong number of planes");
    require(given.row_temps >= 0 && given.temps >= 0, "negative sizes");
    memcpy(instructions.data(), given.instructions.data(), given.instructions.size());
    for (size_t i = 0; i < given.reads.size(); ++i) reads[i] = given.reads[i] != 0;
    const int64_t all =
        planes + static_cast<int64_t>(constants.size()) + given.row_temps + given.temps;
    for (const Instruction& i : instructions) {
      require((i.op & ~Instruction::kOnce) < kOpCount, "unknown operation");
      for (const uint16_t plane : {i.dst, i.a, i.b, i.c, i.d})
        require(plane < all, "no such plane");
    }
    code = {instructions.data(), static_cast<int64_t>(instructions.size()),
            constants.data(),    static_cast<int64_t>(constants.size()),
            given.planes,        given.row_temps,
            given.temps,         reads.get()};
  }
};

// The instructions of a code but for those whose only purpose are its planes from `first` on.
std::vector<Instruction> without(const Code& code, int64_t first) {
  const int64_t all = code.planes + code.constant_count + code.row_temps + code.temps;
  std::vector<bool> wanted(all);
  std::fill(wanted.begin(), wanted.begin() + first, true);
  std::vector<Instruction> kept;
  for (int64_t k = code.length - 1; k >= 0; --k) {
    const Instruction& i = code.instructions[k];
    if (!wanted[i.dst]) continue;
    wanted[i.dst] = i.dst < first;
    for (const uint16_t plane : {i.a, i.b, i.c, i.d}) wanted[plane] = true;
    kept.push_back(i);
  }
  std::reverse(kept.begin(), kept.end());
  return kept;
}

struct Kept {
  std::string name;
  OwnedCode forward, backward, first_forward, first_backward;
  std::vector<Instruction> inference;
  Program program;

  explicit Kept(const GivenProgram& g)
      : name(g.name),
        forward(g.forward, inputs(g) + g.gates_w + 1 + g.own + g.saved - g.saved_first),
        backward(g.backward, gradient_inputs(g) + (g.gates_w > 0) + g.gates_x +
                                 (g.split ? g.gates_u : 0) + 1 + g.own + g.params),
        first_forward(g.first_forward, g.gates_w ? inputs(g) + 1 + g.saved_first : 0),
        first_backward(g.first_backward, g.gates_w ? gradient_inputs(g) + g.gates_w : 0) {
    program = {name.c_str(),
               {.name = name.c_str(),
                .gates = g.gates_x,
                .saved = g.saved,
                .keeps = g.own ? 'c' : '\0',
                .split = g.split,
                .hidden_gates = g.gates_u + g.gates_w,
                .own = g.own,
                .params = g.params,
                .program = &program},
               g.output,
               g.row_sums,
               forward.code,
               backward.code,
               g.gates_w,
               g.saved_first,
               first_forward.code,
               first_backward.code,
               forward.code};
    inference = without(forward.code, forward.code.planes - (g.saved - g.saved_first));
    program.inference.instructions = inference.data();
    program.inference.length = static_cast<int64_t>(inference.size());
  }
  // Planes that both codes of a direction are given.
  static int64_t gradient_inputs(const GivenProgram& g) {
    return g.saved + 3 * (1 + g.own) + g.params;
  }
  static int64_t inputs(const GivenProgram& g) {
    const bool sizes = g.gates_x >= 1 && g.gates_u >= 0 && g.own >= 0 && g.params >= 0 &&
                       g.params <= kMostParams && g.saved >= 0 && g.output >= 0 &&
                       g.output <= g.own && (g.split || g.gates_x == g.gates_u) && g.gates_w >= 0 &&
                       g.saved_first <= g.saved &&
                       (g.gates_w ? g.split && g.saved_first > 0 : g.saved_first == 0);
    if (!sizes) throw std::invalid_argument("not a program: sizes");
    return (g.split ? g.gates_x : 0) + g.gates_u + 1 + g.own + g.params;
  }
};

std::mutex mutex;
#if defined(__unix__) || defined(__APPLE__)
// A child must not find it locked by a thread that it has not.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
#endif
std::map<std::string, std::unique_ptr<Kept>, std::less<>>& programs() {
  // Never destroyed: threads may go on while the process ends.
  static auto& all = *new std::map<std::string, std::unique_ptr<Kept>, std::less<>>;
  return all;
}

}  // namespace

void register_program(const GivenProgram& given) {
  auto kept = std::make_unique<Kept>(given);
  const std::lock_guard<std::mutex> lock(mutex);
  programs().emplace(given.name, std::move(kept));
}

const Program* find_program(const char* name) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = programs().find(std::string_view(name));
  return found == programs().end() ? nullptr : &found->second->program;
}

std::vector<std::string> program_ops() { return {std::begin(kOps), std::end(kOps)}; }

}  // namespace fastrnn
