// The kernels of floats in parts, compiled for emulated tiles: for test_parts*.cpp.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "check.h"

#define FASTRNN_NAMESPACE emulated
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_PAIRS
#define FASTRNN_TILES
#include "cpu/activations.h"
//
#include "cells.h"
#include "cpu/isa.h"
#include "cpu/panels.h"
#include "cpu/split.h"
#include "cpu/zeros.h"
#include "tensors.h"
#include "together.h"

using emulated::Parts;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
