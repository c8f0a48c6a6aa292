// The CUDA kernels and their binding on the host, as a Python module for tests/cuda_kernels.py.
#include "cuda/bind.cpp"
#include "cuda/forward.cu"
#include "cuda/backward.cu"
#include "cuda/persistent_backward.cu"
#include "cuda/persistent_forward.cu"

PYBIND11_MODULE(emulated, m) {
  fastrnn::cuda::bind_loops(m);
  m.def("synchronize", &fastrnn::cuda::emulate::synchronize, "Runs what was launched.");
  m.def("seed", &fastrnn::cuda::emulate::seed, "Chooses the order in which threads run.");
}
