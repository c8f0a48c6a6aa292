// What the boundary between two dependent kernels costs in a CUDA graph: a chain of kernels, each
// of which reads what another block of the one before wrote, adds 1, and then spins for `work`
// cycles.
//
//   plain          ordinary edges
//   pdl            programmatic edges; each kernel lets its successor start at once
//                  (griddepcontrol.launch_dependents), which waits before it reads
//                  (griddepcontrol.wait)
//   pdl_implicit   programmatic edges, the successor starts when the blocks before it end
//
// `node` is the time of the whole graph over its kernels; `boundary` is that less the work, at the
// clock measured just before. The sum at the end proves the order of all kernels, and the edges of
// the captured graph are counted, for a capture that dropped the attribute would time nothing new.
#include "micro.cuh"

constexpr int kThreads = 256;
constexpr int kLinks = 1000;
constexpr int kRepeats = 9;

enum class Way { kPlain, kPdl, kPdlImplicit };
constexpr const char* kNames[] = {"plain", "pdl", "pdl_implicit"};

// before, after: one value a block.
template <Way kWay>
__global__ void __launch_bounds__(kThreads)
    link(const unsigned* before, unsigned* after, long long work) {
  if constexpr (kWay == Way::kPdl) asm volatile("griddepcontrol.launch_dependents;");
  if constexpr (kWay != Way::kPlain) asm volatile("griddepcontrol.wait;" ::: "memory");
  const long long start = clock64();
  if (threadIdx.x == 0) {
    const unsigned neighbour = blockIdx.x + 1 == gridDim.x ? 0 : blockIdx.x + 1;
    after[blockIdx.x] = *static_cast<const volatile unsigned*>(before + neighbour) + 1;
  }
  while (clock64() - start < work) {
  }
}

__global__ void spin(long long cycles, Span* span) {
  const Span start = now();
  while (clock64() - start.cycles < cycles) {
  }
  *span = since(start);
}

// GHz of the clock that work is counted in.
static double sm_clock() {
  static Span* span = device_array<Span>(1);
  spin<<<1, 1>>>(20'000'000, span);
  CHECK(cudaDeviceSynchronize());
  const Span seen = to_host(span, 1)[0];
  return static_cast<double>(seen.cycles) / static_cast<double>(seen.ns);
}

template <Way kWay>
static cudaGraph_t capture(cudaStream_t stream, int blocks, long long work, unsigned* cells[2]) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = kWay == Way::kPlain ? 0 : 1;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLinks; ++i)
    CHECK(cudaLaunchKernelEx(&config, link<kWay>, static_cast<const unsigned*>(cells[i % 2]),
                             cells[(i + 1) % 2], work));
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph));

  size_t edges = 0;
  CHECK(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &edges));
  std::vector<cudaGraphNode_t> from(edges), to(edges);
  std::vector<cudaGraphEdgeData> data(edges);
  CHECK(cudaGraphGetEdges(graph, from.data(), to.data(), data.data(), &edges));
  const auto programmatic = std::count_if(data.begin(), data.end(), [](const auto& edge) {
    return edge.type == cudaGraphDependencyTypeProgrammatic;
  });
  if (programmatic != (kWay == Way::kPlain ? 0 : kLinks - 1))
    fail("%s: %d programmatic edges", kNames[static_cast<int>(kWay)],
         static_cast<int>(programmatic));
  return graph;
}

template <Way kWay>
static void measure(int blocks, long long work) {
  static cudaStream_t stream = nullptr;
  static unsigned* cells[2] = {device_array<unsigned>(1024), device_array<unsigned>(1024)};
  if (stream == nullptr) CHECK(cudaStreamCreate(&stream));
  cudaGraph_t graph = capture<kWay>(stream, blocks, work, cells);
  cudaGraphExec_t program = nullptr;
  CHECK(cudaGraphInstantiate(&program, graph, 0));
  const double clock = sm_clock();
  Samples node, boundary;
  for (int repeat = -2; repeat < kRepeats; ++repeat) {
    CHECK(cudaMemset(cells[0], 0, 1024 * sizeof(unsigned)));
    CHECK(cudaMemset(cells[1], 0xff, 1024 * sizeof(unsigned)));
    const double ms = event_ms([&] { CHECK(cudaGraphLaunch(program, nullptr)); });
    for (const unsigned value : to_host(cells[kLinks % 2], static_cast<size_t>(blocks)))
      if (value != kLinks) fail("a chain of %d kernels counted to %u", kLinks, value);
    if (repeat < 0) continue;
    node.push_back(ms * 1e6 / kLinks);
    boundary.push_back(node.back() - static_cast<double>(work) / clock);
  }
  CHECK(cudaGraphExecDestroy(program));
  CHECK(cudaGraphDestroy(graph));
  const std::string parameters =
      text("blocks=%d work=%lld way=%s", blocks, work, kNames[static_cast<int>(kWay)]);
  row("boundary", parameters, "node", node, "ns");
  row("boundary", parameters, "boundary", boundary, "ns");
}

template <Way kWay>
static void measure_all() {
  for (const int blocks : {128, 32, multiprocessors()})
    for (const long long work : {0ll, 2000ll}) measure<kWay>(blocks, work);
}

int main() {
  measure_all<Way::kPlain>();
  measure_all<Way::kPdl>();
  measure_all<Way::kPdlImplicit>();
}
