// Fibers: who runs when, what a switch preserves, exceptions inside, fibers that never end.
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "check.h"
#include "fiber.h"

using fastrnn::cuda::emulate::Fiber;

struct Counter : Fiber {
  int id = 0, steps = 0;
  double result = 0;
};
Counter& counter(Fiber& fiber) { return static_cast<Counter&>(fiber); }

std::string trace;

void turns() {
  Counter fibers[3];
  for (int i = 0; i < 3; ++i) {
    fibers[i].id = i;
    fibers[i].start([](Fiber& self) {
      for (int step = 0; step < 3 - counter(self).id; ++step) {
        trace += static_cast<char>('a' + counter(self).id);
        CHECK(Fiber::running == &self, "another runs");
        self.suspend();
      }
      trace += static_cast<char>('A' + counter(self).id);
    });
  }
  for (int round = 0; round < 4; ++round)
    for (Counter& fiber : fibers)
      if (!fiber.ended) fiber.resume();
  CHECK(trace == "abcabCaBA", "%s", trace.c_str());
  for (const Counter& fiber : fibers) CHECK(fiber.ended, "has not ended");
}

// Enough live values to need all registers, across switches between fibers that differ in them.
void registers() {
  const auto body = [](Fiber& self) {
    Counter& me = counter(self);
    double x[12];
    long n[12];
    for (int i = 0; i < 12; ++i) x[i] = me.id + i, n[i] = me.id * 100 + i;
    for (int step = 0; step < 50; ++step) {
      for (int i = 0; i < 12; ++i) x[i] = x[i] * 1.5 - x[(i + 1) % 12], n[i] ^= n[(i + 5) % 12] + i;
      if (me.steps != 0) self.suspend();
    }
    for (int i = 0; i < 12; ++i) me.result += x[i] + static_cast<double>(n[i] % 1000);
  };
  Counter alone[4], mixed[4];
  for (int i = 0; i < 4; ++i) {
    alone[i].id = mixed[i].id = i;
    mixed[i].steps = 1;
    alone[i].start(body);
    mixed[i].start(body);
    alone[i].resume();
  }
  for (int step = 0; step < 51; ++step)
    for (Counter& fiber : mixed) fiber.resume();
  for (int i = 0; i < 4; ++i)
    CHECK(mixed[i].ended && mixed[i].result == alone[i].result, "fiber %d: %g", i, mixed[i].result);
}

int deep(Fiber& self, int depth) {
  if (depth == 0) throw std::runtime_error("deep");
  char room[1000];
  room[depth] = static_cast<char>(depth);
  self.suspend();
  return deep(self, depth - 1) + room[depth];
}
void exceptions() {
  Counter fiber;
  fiber.start([](Fiber& self) {
    try {
      deep(self, 50);
    } catch (const std::runtime_error& error) {
      counter(self).steps = error.what() == std::string("deep");
    }
    self.suspend();
    ++counter(self).steps;
  });
  while (!fiber.ended) fiber.resume();
  CHECK(fiber.steps == 2, "%d", fiber.steps);
}

// Their stacks are used again; frames that were left there are no hindrance.
void abandoned() {
  for (int round = 0; round < 20; ++round) {
    const auto fibers = std::make_unique<Counter[]>(20);
    for (int i = 0; i < 20; ++i) {
      fibers[i].id = i;
      fibers[i].start([](Fiber& self) {
        if (counter(self).id % 2)
          deep(self, 30 + counter(self).id);
        else
          ++counter(self).steps;
      });
      for (int step = 0; step < 15 && !fibers[i].ended; ++step) fibers[i].resume();
      CHECK(fibers[i].ended == (i % 2 == 0), "fiber %d", i);
    }
  }
}

int main() {
  turns();
  registers();
  exceptions();
  abandoned();
  return report("test_fiber");
}
