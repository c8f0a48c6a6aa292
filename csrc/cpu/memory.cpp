#include "cpu/memory.h"

#include <cstdlib>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrnn::cpu {

namespace {

// A large piece is whole pages of those that Linux may make huge: faulting in 4 KiB at a time
// costs 5 % of a training step with large weights.
constexpr size_t kLarge = 2 << 20, kCacheLine = 64;

struct Piece {
  void* data;
  size_t size;
};

// Of one thread, so that nobody waits for anybody and a fork leaves nothing half done.
class Kept {
 public:
  ~Kept() { shrink(0); }
  void* take(size_t size) {
    for (size_t i = pieces_.size(); i-- > 0;)
      if (pieces_[i].size == size) {
        void* const data = pieces_[i].data;
        pieces_.erase(pieces_.begin() + static_cast<ptrdiff_t>(i));
        bytes_ -= size;
        return data;
      }
    return nullptr;
  }
  void add(Piece piece) {
    pieces_.push_back(piece);
    bytes_ += piece.size;
    shrink(kKeptBytes);
  }

 private:
  // Lets go of what has waited longest.
  void shrink(size_t most) {
    size_t first = 0;
    for (; bytes_ > most; ++first) {
      std::free(pieces_[first].data);
      bytes_ -= pieces_[first].size;
    }
    pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<ptrdiff_t>(first));
  }

  std::vector<Piece> pieces_;
  size_t bytes_ = 0;
};

Kept& kept() {
  thread_local Kept pieces;
  return pieces;
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= kLarge ? kLarge : kCacheLine;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

void* take_memory(size_t bytes) {
  const size_t size = rounded(bytes);
  const bool large = size >= kLarge;
  if (large)
    if (void* const memory = kept().take(size)) return memory;
  void* const memory = std::aligned_alloc(large ? kLarge : kCacheLine, size);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (large) madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

void give_memory_back(void* memory, size_t bytes) {
  const size_t size = rounded(bytes);
  if (memory != nullptr && size >= kLarge && size <= kKeptBytes) {
    kept().add({memory, size});
  } else {
    std::free(memory);
  }
}

}  // namespace fastrnn::cpu
