// Memory that lasts for a call.
#pragma once

#include <cstddef>

namespace fastrnn::cpu {

// Uninitialised memory, aligned to a cache line; a thread gives back what it took, and says how
// much that was. Up to kKeptBytes of large pieces wait for its next call, since Linux clears every
// page that it hands out: up to 6 % of the time of a layer with large weights. Throws
// std::bad_alloc.
void* take_memory(size_t bytes);
void give_memory_back(void* memory, size_t bytes);

inline constexpr size_t kKeptBytes = 64 << 20;

}  // namespace fastrnn::cpu
