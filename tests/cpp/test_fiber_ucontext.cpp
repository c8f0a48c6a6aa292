// The same where a switch is POSIX's.
#define FASTRNN_UCONTEXT
#include "test_fiber.cpp"
