// The two ceilings that times are read against: device memory bandwidth of a large copy (bytes read
// plus bytes written), and the rate of a large matrix product in bf16, fp16 and TF32 on random
// data.
//
// cuBLAS is opened at run time, from the path given as the one argument or else by its name, so
// that building this needs no more than the CUDA runtime. The copy is compared word for word, the
// product in 4096 places with a sum in double.
#include "micro.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <dlfcn.h>

constexpr size_t kCopyBytes = size_t{1} << 30;
constexpr int kSize = 8192;
constexpr int kPlaces = 4096;
constexpr int kRepeats = 15;

__device__ inline uint32_t hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Uniform in [-1, 1).
template <class T>
__global__ void fill(T* data, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x)
    data[i] =
        static_cast<T>(static_cast<float>(hash(static_cast<uint32_t>(i) ^ seed)) * 0x1p-31f - 1);
}

__global__ void copy(const uint4* from, uint4* to, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x)
    to[i] = from[i];
}

__global__ void count_different(const uint32_t* a, const uint32_t* b, size_t count,
                                unsigned* different) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x)
    if (a[i] != b[i]) atomicAdd(different, 1);
}

// Of C = A B, all kSize x kSize by columns, in kPlaces places. Entries have the scale sqrt(kSize) /
// 3 and are rounded to 8 bits at worst; a wrong layout is wrong by their scale.
template <class T>
__global__ void count_wrong(const T* a, const T* b, const T* c, unsigned* wrong) {
  const uint32_t place = hash(blockIdx.x * blockDim.x + threadIdx.x);
  const size_t row = place % kSize, column = place / kSize % kSize;
  double want = 0;
  for (size_t k = 0; k < kSize; ++k)
    want += static_cast<double>(static_cast<float>(a[row + k * kSize])) *
            static_cast<double>(static_cast<float>(b[k + column * kSize]));
  const double error =
      fabs(static_cast<double>(static_cast<float>(c[row + column * kSize])) - want);
  if (!(error <= 0.005 * fabs(want) + 0.001 * sqrt(double{kSize}))) atomicAdd(wrong, 1);
}

static unsigned* counter() {
  static unsigned* count = device_array<unsigned>(1);
  CHECK(cudaMemset(count, 0, sizeof *count));
  return count;
}

template <class Work>
static Samples repeat(const Work& work) {
  Samples ms;
  for (int i = -3; i < kRepeats; ++i) {
    const double one = event_ms(work);
    if (i >= 0) ms.push_back(one);
  }
  CHECK(cudaGetLastError());
  return ms;
}

template <class Work>
static void measure_copy(const char* way, const uint32_t* from, uint32_t* to, const Work& work) {
  constexpr size_t kWords = kCopyBytes / sizeof(uint32_t);
  CHECK(cudaMemset(to, 0xff, kCopyBytes));
  const Samples ms = repeat(work);
  unsigned* different = counter();
  count_different<<<2048, 256>>>(from, to, kWords, different);
  if (to_host(different, 1)[0] != 0) fail("copy: %s: wrong words", way);
  Samples rate;
  for (const double one : ms) rate.push_back(2.0 * kCopyBytes / one / 1e9);
  row("ceilings", text("op=copy bytes=%zu way=%s", kCopyBytes, way), "bandwidth", rate, "TB/s");
}

static void measure_copies() {
  constexpr size_t kChunks = kCopyBytes / sizeof(uint4);
  float* from = device_array<float>(kCopyBytes / sizeof(float));
  float* to = device_array<float>(kCopyBytes / sizeof(float));
  fill<<<2048, 256>>>(from, kCopyBytes / sizeof(float), 1);
  const auto* words = reinterpret_cast<const uint32_t*>(from);
  auto* out = reinterpret_cast<uint32_t*>(to);
  measure_copy("kernel", words, out, [&] {
    copy<<<static_cast<unsigned>(kChunks / 256 / 4), 256>>>(reinterpret_cast<const uint4*>(from),
                                                            reinterpret_cast<uint4*>(to), kChunks);
  });
  measure_copy("memcpy", words, out,
               [&] { CHECK(cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDeviceToDevice)); });
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
}

// What is used of cuBLAS, with the values of its enumerations.
struct Blas {
  using Create = int(void** handle);
  using GemmEx = int(void* handle, int transpose_a, int transpose_b, int m, int n, int k,
                     const void* alpha, const void* a, int a_type, int lda, const void* b,
                     int b_type, int ldb, const void* beta, void* c, int c_type, int ldc,
                     int compute_type, int algorithm);
  static constexpr int kNoTranspose = 0, kCompute32F = 68, kComputeTf32 = 77, kDefault = -1;

  void* handle = nullptr;
  GemmEx* gemm = nullptr;

  explicit Blas(const char* path) {
    void* library = nullptr;
    for (const char* name : {path, "libcublas.so.13", "libcublas.so.12", "libcublas.so"})
      if (library == nullptr && name != nullptr) library = dlopen(name, RTLD_NOW);
    if (library == nullptr) fail("ceilings: no cuBLAS: %s", dlerror());
    auto* create = reinterpret_cast<Create*>(dlsym(library, "cublasCreate_v2"));
    gemm = reinterpret_cast<GemmEx*>(dlsym(library, "cublasGemmEx"));
    if (create == nullptr || gemm == nullptr) fail("ceilings: cuBLAS lacks a function");
    if (const int status = create(&handle)) fail("ceilings: cublasCreate: status %d", status);
  }
};

template <class T>
static void measure_product(const Blas& blas, const char* name, cudaDataType type, int compute) {
  constexpr size_t kCount = size_t{kSize} * kSize;
  T* a = device_array<T>(kCount);
  T* b = device_array<T>(kCount);
  T* c = device_array<T>(kCount, 0xff);
  fill<<<2048, 256>>>(a, kCount, 2);
  fill<<<2048, 256>>>(b, kCount, 3);
  const float one = 1, zero = 0;
  const Samples ms = repeat([&] {
    const int status =
        blas.gemm(blas.handle, Blas::kNoTranspose, Blas::kNoTranspose, kSize, kSize, kSize, &one, a,
                  type, kSize, b, type, kSize, &zero, c, type, kSize, compute, Blas::kDefault);
    if (status != 0) fail("ceilings: cublasGemmEx: status %d", status);
  });
  unsigned* wrong = counter();
  count_wrong<<<kPlaces / 256, 256>>>(a, b, c, wrong);
  if (to_host(wrong, 1)[0] != 0) fail("ceilings: %s product is wrong", name);
  Samples rate;
  for (const double each : ms) rate.push_back(2.0 * kCount * kSize / each / 1e9);
  row("ceilings", text("op=product size=%d dtype=%s", kSize, name), "rate", rate, "TFLOP/s");
  for (T* array : {a, b, c}) CHECK(cudaFree(array));
}

int main(int count, char** arguments) {
  measure_copies();
  const Blas blas(count > 1 ? arguments[1] : nullptr);
  measure_product<__nv_bfloat16>(blas, "bf16", CUDA_R_16BF, Blas::kCompute32F);
  measure_product<__half>(blas, "fp16", CUDA_R_16F, Blas::kCompute32F);
  measure_product<float>(blas, "tf32", CUDA_R_32F, Blas::kComputeTf32);
}
