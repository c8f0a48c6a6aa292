// What a newer compiler takes from libstdc++ and glibc, but manylinux_2_28 lacks
// (GLIBCXX_3.4.25, GLIBC_2.28). Defined here, it lets an extension that was built on a newer Linux
// load on an older one; auditwheel says whether the list is complete.
#include <new>
#include <sstream>

#if defined(__GLIBCXX__)

// 3.4.26: the constructors without arguments; 3.4.29: str() of an lvalue and of an rvalue.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

// 3.4.29
void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// glibc 2.32. Zero: a reference count of std::shared_ptr is always atomic.
extern "C" [[gnu::visibility("hidden")]] char __libc_single_threaded;
char __libc_single_threaded = 0;

#endif
