"""What the tests share: tolerances, comparison with float64, poisoned memory, kernel variants."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

# The only tolerances: dtype -> (rtol, atol). A result is compared with the float64 result of the
# same formulas, and atol counts in units of the largest element expected (at least 1), since an
# element of a product is rounded in units of its terms, not of their sum. The longest sum in the
# tests is a weight gradient over 513 * 33 rows: sqrt(17000) roundings of half an ULP are 8e-6 in
# float32 and 1.4e-14 in float64, which is also what the kernels show. Two formulas that differ in
# the order of sums, ours and torch's, may err in opposite directions.
# float16 and bfloat16 round at every operation of every step: a few ULP (1e-3, 8e-3).
TOLERANCE = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (5e-3, 5e-3),
    torch.bfloat16: (4e-2, 4e-2),
    torch.complex64: (2e-5, 2e-5),
}

# A shell that puts the run into the background has this signal ignored, here and in every child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU Triton's interpreter runs its kernels. Triton asks when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# cuBLAS is deterministic, which `poisoned_memory` demands, only in workspaces of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

try:
    KERNELS = importlib.import_module("fastrnn._C")
except ImportError:
    KERNELS = None


def assert_matches(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """actual equals expected within the tolerance of actual's dtype.

    Equal infinities match, and so do NaNs.
    """
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, expected {expected.shape}"
    rtol, atol = TOLERANCE[actual.dtype]
    wide = torch.complex128 if actual.is_complex() else torch.float64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    finite = expected[expected.isfinite()].abs()
    scale = max(1.0, finite.max().item()) if finite.numel() else 1.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=rtol,
        atol=atol * scale,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


@contextlib.contextmanager
def poison() -> Iterator[None]:
    """Fills what is allocated: torch.empty with NaN, malloc with huge numbers where glibc can.

    A kernel that reads what nobody wrote then gives NaN or numbers that no comparison passes.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    libc = ctypes.CDLL(None)
    perturb = -6  # M_PERTURB of malloc.h; memory is filled with the complement, 0x7f7f7f7f
    if hasattr(libc, "mallopt"):
        libc.mallopt(perturb, 0x80)
    yield
    if hasattr(libc, "mallopt"):
        libc.mallopt(perturb, 0)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    with poison():
        yield


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """What is found out on a machine is kept for the tests alone, and for processes of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRNN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed():
    """Every test draws the same numbers, alone or in a run of all."""
    torch.manual_seed(0)


FEATURES = KERNELS.cpu_features() if KERNELS else ["reference"]
IN_PARTS = "amx, float32 in parts"


@pytest.fixture(params=[*FEATURES, *([IN_PARTS] if "amx" in FEATURES else [])])
def isa(request):
    """Each instruction set that the CPU offers, in turn, and of AMX both ways that it has for
    float32; the reference where none is built."""
    if KERNELS is None:
        yield request.param
        return
    before = KERNELS.isa(), KERNELS.in_parts()
    KERNELS.set_isa("amx" if request.param == IN_PARTS else request.param)
    KERNELS.set_in_parts("always" if request.param == IN_PARTS else "never")
    yield request.param
    KERNELS.set_isa(before[0])
    KERNELS.set_in_parts(before[1])


@pytest.fixture
def exact_products():
    """float32 without TF32 on GPUs; cuDNN uses it unless told otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Of each call since, whether it took the short way (fastrnn/direct.py)."""
    from fastrnn import direct

    calls = []

    def watched(function):
        def call(*arguments):
            results = function(*arguments)
            calls.append(results is not None)
            return results

        return call

    for name in ("stack", "run", "step"):
        monkeypatch.setattr(direct, name, watched(getattr(direct, name)))
    return calls


@pytest.fixture
def one_thread():
    """For this process, whatever the test sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def good():
    """Calls that are right are made after the test, with the modules it hands over."""
    from torch_pairs import assert_same_results, example  # which import this file

    pairs = []
    yield pairs.append
    assert pairs
    for name, ours, theirs in pairs:
        x = example(name)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert_same_results(ours(x), theirs(x))
