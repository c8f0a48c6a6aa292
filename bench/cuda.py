"""What is different on a GPU: events instead of a clock, a cold L2, CUDA graphs, its ceilings."""

import functools
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from bench.problems import torch_dtype

FLUSH = 256 << 20  # bytes, more than any L2 holds


@functools.cache
def eraser() -> torch.Tensor:
    return torch.empty(FLUSH, dtype=torch.int8, device="cuda")


def sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call, averaged over `repeats` calls, from an event before it to one after it.

    Before each, the L2 is overwritten, so that no call finds what the one before left there. The
    time on the host counts only where the kernels have to wait for it, as it does in a model whose
    next layer is launched while this one runs.
    """
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for before, after in events:
        eraser().zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return sum(before.elapsed_time(after) for before, after in events) / repeats / 1e3


def host(call: Callable[[], object], clock: Callable[[], float], calls: int = 3) -> float:
    """Seconds until a call returns when the GPU has nothing else to do; the median."""
    took = []
    for _ in range(calls):
        torch.cuda.synchronize()
        begun = clock()
        call()
        took.append(clock() - begun)
    torch.cuda.synchronize()
    return statistics.median(took)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """`call` as a CUDA graph: a call replays it and gives the same tensors, written anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # whatever a library does in its first calls cannot be captured
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> object:
        graph.replay()
        return results

    return replay


def kernels(call: Callable[[], object]) -> str:
    """What runs on the GPU in a call: how often, what; those first that take the longest."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return summary(
        (event.name, event.time_range.elapsed_us())
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def summary(events: Iterable[tuple[str, float]], most: int = 6) -> str:
    """Names and microseconds as one line: the `most` that take the longest, and how many others."""
    count, took = Counter(), Counter()
    for name, microseconds in events:
        count[name] += 1
        took[name] += microseconds
    names = [f"{count[name]}x {name[:150]}" for name, _ in took.most_common(most)]
    others = len(count) - len(names)
    return "; ".join([*names, f"{others} others"] if others else names)


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def matrix_rate(dtype: str, size: int = 8192) -> float:
    """FLOP/s of torch.mm on square matrices."""
    allow_tf32(dtype == "tf32")
    a = torch.randn(size, size, device="cuda").to(torch_dtype(dtype))
    return 2 * size**3 / min(sample(lambda: torch.mm(a, a), 1) for _ in range(10))


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy in the memory of the GPU."""
    size = 1 << 30
    data = torch.empty(size, dtype=torch.int8, device="cuda")
    other = torch.empty_like(data)
    return 2 * size / min(sample(lambda: other.copy_(data), 1) for _ in range(10))


def query(name: str) -> str:
    """A property that nvidia-smi knows, "" where it is not there, or no GPU."""
    if not torch.cuda.is_available():
        return ""
    current = torch.cuda.get_device_properties(torch.cuda.current_device())
    which = f"--id=GPU-{current.uuid}"  # it counts the GPUs that torch is not shown, too
    command = ["nvidia-smi", which, f"--query-gpu={name}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
