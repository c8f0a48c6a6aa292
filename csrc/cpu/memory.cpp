#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastrnn::cpu {

namespace {

// A large piece is whole pages of those that Linux may make huge: faulting in 4 KiB at a time
// costs 5 % of a training step with large weights.
constexpr size_t kLarge = 2 << 20, kCacheLine = 64;

// Null without memory. Not aligned_alloc, which Windows lacks.
void* take_aligned(size_t bytes, size_t alignment) {
  return ::operator new(bytes, std::align_val_t(alignment), std::nothrow);
}
void give_aligned_back(void* memory, size_t alignment) {
  ::operator delete(memory, std::align_val_t(alignment));
}

struct Piece {
  void* data;
  size_t size;
};

// Pieces that wait, the oldest first. One lock for all threads, held for the time of a look at the
// list: what is freed is freed after it.
class Pool {
 public:
  static constexpr size_t kMost = kKeptBytes / kLarge;

  // The newest of that size, or null.
  void* take(size_t size) {
    const std::lock_guard lock(mutex_);
    for (size_t i = count_; i-- > 0;)
      if (pieces_[i].size == size) {
        void* const data = pieces_[i].data;
        std::copy(pieces_ + i + 1, pieces_ + count_--, pieces_ + i);
        bytes_ -= size;
        return data;
      }
    return nullptr;
  }

  // In the place of the oldest, where there is no room. Of at most kKeptBytes.
  void add(Piece piece) {
    Piece freed[kMost];
    size_t count;
    {
      const std::lock_guard lock(mutex_);
      count = drop(kKeptBytes - piece.size, freed);
      pieces_[count_++] = piece;
      bytes_ += piece.size;
    }
    for (size_t i = 0; i < count; ++i) give_aligned_back(freed[i].data, kLarge);
  }

  size_t clear() {
    Piece freed[kMost];
    size_t count, bytes;
    {
      const std::lock_guard lock(mutex_);
      bytes = bytes_;
      count = drop(0, freed);
    }
    for (size_t i = 0; i < count; ++i) give_aligned_back(freed[i].data, kLarge);
    return bytes;
  }

  // Around a fork, so that no other thread is in the midst of a change.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // Moves the oldest to `freed` until no more than `most` bytes are left; how many pieces.
  size_t drop(size_t most, Piece* freed) {
    size_t count = 0;
    for (; bytes_ > most; ++count) bytes_ -= pieces_[count].size;
    std::copy(pieces_, pieces_ + count, freed);
    std::copy(pieces_ + count, pieces_ + count_, pieces_);
    count_ -= count;
    return count;
  }

  std::mutex mutex_;
  Piece pieces_[kMost] = {};
  size_t count_ = 0, bytes_ = 0;
};

// Never destroyed: threads may go on while the process ends.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
#endif

// Small pieces, of which short calls take a dozen, come from malloc: it takes a quarter of the time
// of aligned pieces up to 1 KiB, and half of it up to 8 (glibc 2.36). The byte before such a piece
// says how far it is from where malloc's begins. The address sanitizer would not see a write there.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kSmall = 0;
#else
constexpr size_t kSmall = 8 << 10;
#endif

void* take_small(size_t bytes) {
  auto* const begin = static_cast<unsigned char*>(std::malloc(bytes + kCacheLine));
  if (begin == nullptr) return nullptr;
  const size_t shift = kCacheLine - reinterpret_cast<uintptr_t>(begin) % kCacheLine;
  begin[shift - 1] = static_cast<unsigned char>(shift);
  return begin + shift;
}
void give_small_back(void* memory) {
  auto* const bytes = static_cast<unsigned char*>(memory);
  std::free(bytes - bytes[-1]);
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kLarge ? kLarge : kCacheLine;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void* take_memory(size_t bytes) {
  if (bytes == 0) return nullptr;
  const size_t size = rounded(bytes);
  const bool large = size >= kLarge;
  if (large)
    if (void* const memory = pool().take(size)) return memory;
  const auto fresh = [&] {
    return bytes <= kSmall ? take_small(bytes) : take_aligned(size, large ? kLarge : kCacheLine);
  };
  void* memory = fresh();
  if (memory == nullptr && pool().clear() > 0) memory = fresh();
  if (memory == nullptr)
    throw std::runtime_error("DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
                             std::to_string(bytes) +
                             " bytes. Error code 12 (Cannot allocate memory)");
#if defined(MADV_HUGEPAGE)
  if (large) madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

void give_memory_back(void* memory, size_t bytes) noexcept {
  const size_t size = rounded(bytes);
  if (memory == nullptr) return;
  if (size >= kLarge && size <= kKeptBytes) {
    pool().add({memory, size});
  } else if (bytes <= kSmall) {
    give_small_back(memory);
  } else {
    give_aligned_back(memory, size >= kLarge ? kLarge : kCacheLine);
  }
}

size_t release_memory() {
  const size_t bytes = pool().clear();
#if defined(__GLIBC__)
  malloc_trim(0);  // free() alone may keep it for the next malloc
#endif
  return bytes;
}

}  // namespace fastrnn::cpu
