// memory.h: what waits for the next call, and how much of it. Under the address sanitizer, kFresh,
// memory that was freed is not handed out again soon, so the same address means that it waited.
#include "cpu/memory.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "together.h"

using namespace fastrnn::cpu;

constexpr size_t kMiB = 1 << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kFresh = true;
#else
constexpr bool kFresh = false;
#endif

// One large piece there and back; where it was.
void* once(size_t bytes) {
  void* const memory = take_memory(bytes);
  CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0, "%zu bytes", bytes);
  std::memset(memory, 1, bytes);
  give_memory_back(memory, bytes);
  return memory;
}

// Pieces around the sizes at which another way takes over, all at once.
void test_small() {
  constexpr size_t kSizes[] = {1, 15, 63, 64, 65, 1000, 8191, 8192, 8193, 16384, 100000};
  for (int turn = 0; turn < 3; ++turn) {
    std::vector<unsigned char*> pieces;
    for (const size_t size : kSizes) {
      pieces.push_back(static_cast<unsigned char*>(take_memory(size)));
      CHECK(reinterpret_cast<uintptr_t>(pieces.back()) % 64 == 0, "%zu bytes", size);
      std::memset(pieces.back(), static_cast<int>(size % 251), size);
    }
    for (size_t i = 0; i < pieces.size(); ++i) {
      const auto value = static_cast<unsigned char>(kSizes[i] % 251);
      CHECK(pieces[i][0] == value && pieces[i][kSizes[i] - 1] == value, "%zu bytes", kSizes[i]);
      give_memory_back(pieces[i], kSizes[i]);
    }
  }
  CHECK(take_memory(0) == nullptr, "no bytes");
  give_memory_back(nullptr, 0);
}

// Threads that take and give back without pause, for the time of `body`.
template <class F>
void among_others(F&& body) {
  std::atomic<bool> done = false;
  Threads others;
  for (size_t i = 0; i < 4; ++i)
    others.emplace_back([&, i] {
      for (size_t k = 0; !done; ++k)
        give_memory_back(take_memory((3 + i + k % 3) * kMiB), (3 + i + k % 3) * kMiB);
    });
  body();
  done = true;
}

// Sixteen threads that each called once.
void test_bound() {
  Threads threads;
  for (size_t i = 0; i < 16; ++i) threads.emplace_back([i] { once((20 + i) * kMiB); });
  threads.join();
  const size_t kept = release_memory();
  CHECK(kept > kKeptBytes / 4 && kept <= kKeptBytes, "%zu bytes waited", kept);
  CHECK(release_memory() == 0, "released twice");
  among_others([] {
    for (int i = 0; i < 200; ++i) CHECK(release_memory() <= kKeptBytes, "the bound, among others");
  });
  CHECK(release_memory() <= kKeptBytes, "the bound, after that");
}

// A child in which only the thread lives that forked, while others were in the midst of it.
void test_fork() {
#if !defined(__SANITIZE_THREAD__)
  among_others([] {
    for (int i = 0; i < 30; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        alarm(20);
        once(5 * kMiB);
        _exit(release_memory() >= 5 * kMiB ? 0 : 1);
      }
      int status = -1;
      waitpid(child, &status, 0);
      CHECK(status == 0, "the child ended with %d", status);
    }
  });
#endif
}

void test_no_memory() {
  once(5 * kMiB);
  std::string said;
  try {
    take_memory(SIZE_MAX / 4);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  CHECK(said == "DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
                    std::to_string(SIZE_MAX / 4) + " bytes. Error code 12 (Cannot allocate memory)",
        "%s", said.c_str());
  CHECK(release_memory() == 0, "what waited was tried first");
  once(5 * kMiB);
}

// Read by the sanitizers.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

int main() {
  test_small();
  once(3 * kMiB - 1);
  void* const first = once(5 * kMiB);
  CHECK(once(5 * kMiB - 100) == first, "the same number of pages");
  CHECK(once(9 * kMiB) != first, "another size");
  void* const held = take_memory(5 * kMiB);
  CHECK(held == first, "it waited meanwhile");
  void* const other = take_memory(5 * kMiB);
  CHECK(other != held, "what is in use is handed out once");
  give_memory_back(other, 5 * kMiB);
  give_memory_back(held, 5 * kMiB);  // the newest
  std::thread([&] { CHECK(once(5 * kMiB) == held, "for any thread"); }).join();

  void* const small = once(kMiB);
  CHECK(!kFresh || once(kMiB) != small, "small pieces do not wait");

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
  CHECK(!kFresh || once(4 * kMiB) != old, "more than kKeptBytes");
  void* const last = once(4 * kMiB);
  once(kKeptBytes + 8 * kMiB);
  CHECK(once(4 * kMiB) == last, "a piece larger than all that may wait drives nothing out");
  release_memory();
  test_bound();
  test_fork();
  test_no_memory();
  return report("test_memory");
}
