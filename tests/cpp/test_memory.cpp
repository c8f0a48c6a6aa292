// memory.h: what waits for the next call, how much of it, and for whom. Under the address sanitizer
// memory that was freed is not handed out again soon, so the same address means that it waited.
#include "cpu/memory.h"

#include <cstdint>
#include <cstring>
#include <iterator>
#include <thread>

#include "check.h"

using namespace fastrnn::cpu;

constexpr size_t kMiB = 1 << 20;

// One large piece there and back; where it was.
void* once(size_t bytes) {
  void* const memory = take_memory(bytes);
  CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0, "%zu bytes", bytes);
  std::memset(memory, 1, bytes);
  give_memory_back(memory, bytes);
  return memory;
}

int main() {
  for (const size_t bytes : {size_t{1}, size_t{64}, size_t{1000}, 3 * kMiB - 1}) once(bytes);
  give_memory_back(nullptr, 0);

  void* const first = once(5 * kMiB);
  CHECK(once(5 * kMiB - 100) == first, "the same number of pages");
  CHECK(once(9 * kMiB) != first, "another size");
  void* const held = take_memory(5 * kMiB);
  CHECK(held == first, "it waited meanwhile");
  CHECK(once(5 * kMiB) != held, "what is in use is handed out once");
  give_memory_back(held, 5 * kMiB);
  std::thread([&] { CHECK(once(5 * kMiB) != held, "another thread's"); }).join();

  void* const small = once(kMiB);
  CHECK(once(kMiB) != small, "small pieces do not wait");

  // The oldest give way.
  void* const old = once(4 * kMiB);
  void* pieces[kKeptBytes / (8 * kMiB)];
  for (void*& piece : pieces) piece = take_memory(8 * kMiB);
  for (void* const piece : pieces) give_memory_back(piece, 8 * kMiB);
  for (size_t i = 0; i < std::size(pieces); ++i) {
    bool waited = false;
    void* const found = take_memory(8 * kMiB);
    for (void* const piece : pieces) waited = waited || found == piece;
    CHECK(waited, "all of kKeptBytes");
  }
  for (void* const piece : pieces) give_memory_back(piece, 8 * kMiB);
  CHECK(once(4 * kMiB) != old, "more than kKeptBytes");
  void* const last = once(4 * kMiB);
  once(kKeptBytes + 8 * kMiB);
  CHECK(once(4 * kMiB) == last, "a piece larger than all that may wait drives nothing out");
  return report("memory");
}
