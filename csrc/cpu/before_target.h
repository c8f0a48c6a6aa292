// What an isa_*.cpp includes before it turns to its CPU: nothing here may be compiled for that one
// alone, since the linker keeps one copy for all.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
