// The product of AVX512-VNNI, with its registers, and on tiles.
#include <cstdint>

#define FASTRNN_NAMESPACE emulated_byte_tiles
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_DOT_TILES
using Activation = uint8_t;
#include "emulated_dot.h"

fastrnn::Kernels with_emulated_byte_tiles(const fastrnn::Kernels& others) {
  return fastrnn::cpu::with_small_streams(others, "emulated byte tiles",
                                          emulated_byte_tiles::kStreamsOnTiles);
}
int64_t emulated_byte_products() { return emulated_byte_tiles::tile.products_of_bytes; }
