#include "fork.h"

#if defined(_WIN32)  // where there is no fork()
namespace fastrnn::cpu {
bool forked_from_threads() { return false; }
}  // namespace fastrnn::cpu
#else
#include <dirent.h>
#include <pthread.h>

namespace fastrnn::cpu {
namespace {

// The threads of this process, or 0 where they are not to be seen.
int threads() {
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return 0;
  int entries = -2;  // "." and ".."
  while (readdir(tasks) != nullptr) ++entries;
  closedir(tasks);
  return entries;
}

// Some libraries start threads of their own when they are loaded. What comes later may be torch's.
const int at_start = threads();
bool forked = false;
bool had_used_threads = false;  // at the last fork()

const int registered = pthread_atfork(
    [] { had_used_threads = forked || used_threads || at_start == 0 || threads() > at_start; },
    nullptr, [] { forked = had_used_threads; });

}  // namespace

bool forked_from_threads() { return forked; }

}  // namespace fastrnn::cpu
#endif
