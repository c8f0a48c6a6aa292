// Whether torch's threads can be used in this process.
#pragma once

#include <atomic>

namespace fastrnn::cpu {

// True in a child of fork() whose parent had used threads. Its pool of threads is then a copy of
// one whose threads are gone, and whatever is given to it is never done.
bool forked_from_threads();

// To be set by whoever uses torch's pool of threads.
inline std::atomic<bool> used_threads{false};

}  // namespace fastrnn::cpu
