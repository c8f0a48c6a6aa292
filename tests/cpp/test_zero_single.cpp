// test_zero.cpp for CPUs that multiply numbers of every type one by one.
#define FASTRNN_SINGLE_OPERANDS
#include "test_zero.cpp"
