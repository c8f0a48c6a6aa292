// Memory that lasts for a call.
#pragma once

#include <cstddef>

namespace fastrnn::cpu {

// Uninitialised memory, aligned to a cache line; null for no bytes. Any thread may give it back,
// and says how many bytes these were. Large pieces wait for the next call, of whichever thread,
// since Linux clears every page that it hands out: up to 6 % of the time of a layer with large
// weights. Throws std::runtime_error where there is none, in the words of torch, which callers look
// for.
void* take_memory(size_t bytes);
void give_memory_back(void* memory, size_t bytes) noexcept;

// The most that waits in a process.
inline constexpr size_t kKeptBytes = 64 << 20;

// Gives the system all that waits; how many bytes that were.
size_t release_memory();

}  // namespace fastrnn::cpu
