// older_systems.cpp: what it puts in the place of libstdc++'s own does the same.
#include "older_systems.cpp"

#include <iostream>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace {

int alive = 0;

struct Counted : std::runtime_error {
  Counted() : std::runtime_error("counted") { ++alive; }
  Counted(const Counted& other) : std::runtime_error(other) { ++alive; }
  ~Counted() override { --alive; }
};

std::exception_ptr thrown() {
  try {
    throw Counted();
  } catch (...) {
    return std::current_exception();
  }
}

// As long as one of many points to it, and no longer.
void test_exceptions() {
  std::exception_ptr first = thrown();
  CHECK(alive == 1, "%d", alive);
  std::vector<std::exception_ptr> many(100, first);
  first = nullptr;
  CHECK(alive == 1, "%d", alive);
  for (const std::exception_ptr& each : many) {
    bool caught = false;
    try {
      std::rethrow_exception(each);
    } catch (const Counted& found) {
      caught = std::string(found.what()) == "counted";
    }
    CHECK(caught && alive == 1, "%d", alive);
  }
  std::exception_ptr last = std::move(many[50]);
  many.clear();
  CHECK(alive == 1, "%d", alive);
  last = thrown();
  CHECK(alive == 1, "%d", alive);
  last = nullptr;
  CHECK(alive == 0, "%d", alive);
}

// What replaces a part of a string may be another part of it.
void test_strings() {
  std::string text = "abcdefgh";
  const char* const volatile part = text.c_str() + 1;
  text.replace(2, 3, part, 5);
  CHECK(text == "abbcdeffgh", "%s", text.c_str());
  std::stringstream stream;
  stream << text << 7;
  CHECK(stream.str() == "abbcdeffgh7", "%s", stream.str().c_str());
}

void test_arrays() {
  bool caught = false;
  try {
    static_cast<void>(std::allocator<double>().allocate(SIZE_MAX));
  } catch (const std::bad_array_new_length&) {
    caught = true;
  }
  CHECK(caught, "%s", "an array of all memory");
}

}  // namespace

int main() {
  test_exceptions();
  test_strings();
  test_arrays();
  std::cout << "a standard stream" << std::endl;
  return report("test_older_systems");
}
