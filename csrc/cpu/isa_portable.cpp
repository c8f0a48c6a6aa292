// Any CPU: 128-bit registers where the compiler has vector types, else single numbers.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define FASTRNN_NAMESPACE fastrnn::cpu::portable
#define FASTRNN_ISA_NAME "portable"
#define FASTRNN_BYTES 16
#define FASTRNN_REGISTERS 16
#include "cpu/denormals.h"
#include "cpu/isa.h"
#include "cpu/live.h"
#include "cpu/memory.h"
#include "cpu/split.h"
#include "cpu/tasks.h"
#include "cpu/team.h"
#include "cpu/table.h"

namespace fastrnn::cpu {
const Kernels* kernels_portable() { return &portable::kTable; }
}  // namespace fastrnn::cpu
