// The CUDA kernels and their binding on the host, as a Python module for tests/cuda_kernels.py.
// Their ops, csrc/cuda/layer.cpp, are compiled beside it.
#include <pybind11/stl.h>

#include "cuda/schedule.cpp"
#include "cuda/forward.cu"
#include "cuda/host.cu"
#include "cuda/backward.cu"
#include "cuda/persistent_backward.cu"
#include "cuda/persistent_forward.cu"

PYBIND11_MODULE(emulated, m) {
  fastrnn::cuda::bind_schedules(m);
  m.def("synchronize", &fastrnn::cuda::emulate::synchronize, "Runs what was launched.");
  m.def("seed", &fastrnn::cuda::emulate::seed, "Chooses the order in which threads run.");
  m.def(
      "launched", [] { return std::exchange(fastrnn::cuda::emulate::launched, {}); },
      "The names of the kernels that were launched since the last time.");
  m.def(
      "device",
      [](int processors, int major) { fastrnn::cuda::emulate::device = {processors, major}; },
      "Makes it another GPU, as far as what is chosen for it goes.");
  m.def(
      "clusters", [](int most) { fastrnn::cuda::emulate::largest_cluster = most; },
      "How many blocks a cluster can have there; 0: none can run.");
}
