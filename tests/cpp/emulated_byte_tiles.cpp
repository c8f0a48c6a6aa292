// The product of AVX512-VNNI, with its registers, and on tiles.
#include <cstdint>

#define FASTRNN_NAMESPACE emulated_byte_tiles
#define FASTRNN_BYTES 64
#define FASTRNN_REGISTERS 32
#define FASTRNN_DOT_TILES
using Activation = uint8_t;
#include "emulated_dot.h"

fastrnn::Kernels with_emulated_byte_tiles(const fastrnn::Kernels& others, bool tiles) {
  using namespace emulated_byte_tiles;
  return fastrnn::cpu::with_small_streams(others, tiles ? "emulated byte tiles" : "beside them",
                                          tiles ? kStreamsOnTiles : kStreams);
}
bool emulated_byte_tiles_in_use() { return emulated_byte_tiles::tile.configured; }
int64_t emulated_tile_work() { return emulated_byte_tiles::tile.work; }
