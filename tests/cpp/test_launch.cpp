// runtime.cuh: that a thread's launches do not take from another's, on either of two devices, and
// that clusters are asked for where a device has them; with a stand-in for CUDA's runtime.
#include "cuda/runtime.cuh"

#include <thread>

#include "check.h"

using namespace fastrnn::cuda;

void kernel(int) {}
void other_kernel(int) {}
void cluster_kernel(int) {}

bool launches(void (*which)(int), size_t shared) {
  try {
    launch(which, {1, 32, shared, true}, nullptr, 1);
    return true;
  } catch (const std::runtime_error& error) {
    CHECK(std::string(error.what()) == "fastrnn: launch of kernel: invalid argument", "%s",
          error.what());
    return false;
  }
}

// A kernel that is known from a small cluster may have a large one.
void test_clusters() {
  LaunchShape shape{32, 64, 1 << 10};
  for (const int blocks : {1, 4, 16}) {
    shape.cluster = blocks;
    CHECK(clusters_at_once(cluster_kernel, shape) == 132 / blocks, "clusters of %d", blocks);
    launch(cluster_kernel, shape, nullptr, 1);
  }
  shape.cluster = 0;
  shape.together = true;
  CHECK(clusters_at_once(cluster_kernel, shape) == 132, "without clusters");
  launch(cluster_kernel, shape, nullptr, 1);
  standin::device = 1;
  shape.cluster = 4;
  CHECK(clusters_at_once(cluster_kernel, shape) == 0, "a device that has none");
  standin::device = 0;
}

// What no launch could help is told apart from what may pass; nothing of it is left behind.
void test_misfit() {
  const auto found = [](cudaError_t loading) {
    standin::loading = loading;
    const char* const text = misfit(reinterpret_cast<const void*>(kernel));
    standin::loading = cudaSuccess;
    CHECK(standin::last == cudaSuccess, "the error is taken");
    CHECK(standin::mode == cudaStreamCaptureModeThreadLocal, "captures go on as before");
    return std::string(text ? text : "");
  };
  for (const auto lasting :
       {cudaErrorInsufficientDriver, cudaErrorInvalidDeviceFunction, cudaErrorInvalidKernelImage,
        cudaErrorNoKernelImageForDevice, cudaErrorInvalidPtx, cudaErrorUnsupportedPtxVersion,
        cudaErrorJitCompilerNotFound, cudaErrorJitCompilationDisabled})
    CHECK(found(lasting) == "another error", "error %d", lasting);
  for (const auto other : {cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation})
    CHECK(found(other).empty(), "error %d", other);
  CHECK(versions().built == 13020 && versions().driver == 12040, "versions");
}

int main() {
  test_clusters();
  test_misfit();
  // Each thread comes to know the kernel at a size of its own, and then once more.
  for (const size_t large : {size_t{200 << 10}, size_t{90 << 10}}) {
    for (const auto which : {kernel, other_kernel}) {
      CHECK(launches(which, large), "the first, of %zu bytes", large);
      for (const size_t small : {size_t{60 << 10}, size_t{0}})
        std::thread([=, device = standin::device] {
          standin::device = device;
          CHECK(launches(which, small), "another thread's");
        }).join();
      CHECK(launches(which, large), "as large as before, of %zu bytes", large);
    }
    standin::device = 1;
  }
  standin::device = 0;
  CHECK(launches(kernel, 226 << 10), "all of a block");
  CHECK(!launches(kernel, 227 << 10), "more than all");
  CHECK(launches(kernel, 60 << 10), "after that");
  const int before = standin::calls;
  CHECK(launches(kernel, 90 << 10) && standin::calls == before, "asked again");
  return report("test_launch");
}
