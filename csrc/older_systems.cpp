// What a newer compiler takes from libstdc++ and glibc, but manylinux_2_28 lacks
// (GLIBCXX_3.4.25, GLIBC_2.28). Defined here, it lets an extension that was built on a newer Linux
// load on an older one; auditwheel says whether the list is complete.
#include <exception>
#include <ios>
#include <new>
#include <sstream>
#include <string>

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

#if _GLIBCXX_RELEASE >= 13

// 3.4.31
template void std::string::_M_replace_cold(char*, size_t, const char*, size_t, size_t);

// 3.4.32. Older ones leave the standard streams to an object in each file that uses them.
static const std::ios_base::Init streams;

extern "C" {

[[gnu::visibility("hidden")]] void init_streams() __asm__("_ZSt21ios_base_library_initv");
void init_streams() {}

// CXXABI 1.3.13: the reference count of std::exception_ptr, by two functions that older ones have.
// The constructor counts and the assignment releases. Nobody here calls that of the header.
void construct(void* self, void* exception) __asm__("_ZNSt15__exception_ptr13exception_ptrC1EPv");
void assign(void* self,
            void* const& other) __asm__("_ZNSt15__exception_ptr13exception_ptraSERKS0_");
[[gnu::visibility("hidden")]] void add_reference(void*& self) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
[[gnu::visibility("hidden")]] void release(void*& self) __asm__(
    "_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");

void add_reference(void*& self) {
  void* another;
  construct(&another, self);
}
void release(void*& self) { assign(&self, nullptr); }

// CXXABI 1.3.15, of GCC 14: what leaves a noexcept function.
void* __cxa_begin_catch(void*) noexcept;
void __cxa_call_terminate(void* exception) noexcept {
  __cxa_begin_catch(exception);
  std::terminate();
}

}  // extern "C"

#endif
#endif
