"""What runs here, what does not and why, and whether what runs is right: `python -m fastrnn`."""

from __future__ import annotations

import contextlib
import importlib
import platform
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from . import modules, torch_private
from .dispatch import (
    BACKENDS,
    LOOPS,
    backend,
    choice,
    cpu,
    cuda,
    cudnn,
    gpu,
    selftest,
    status,
    status_on,
    tuned,
)
from .table import CELLS
from .version import VERSION

CANNOT = "cannot run"
_CELLS = {
    "LSTM": (modules.LSTM, {}),
    "GRU": (modules.GRU, {}),
    "RNN with tanh": (modules.RNN, {}),
    "RNN with relu": (modules.RNN, {"nonlinearity": "relu"}),
}


def facts() -> dict:
    """All that is known, in the types of JSON."""
    states = {name: state_of(name) or "usable" for name in BACKENDS}
    checked = {name: check(name) for name, state in states.items() if state == "usable"}
    ok, verdict = _verdict(checked)
    return {
        "fastrnn": VERSION,
        "torch": torch.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **_build(),
        "threads": torch.get_num_threads(),
        "backends": states,
        "auto": dict(served()),
        "slower": torch_private.missing,
        **({"self-tests": found} if (found := _kept()) else {}),
        **({"tuned": f"{calls} calls, by fastrnn.tune"} if (calls := _tuned()) else {}),
        "checks": {name: wrong or "right" for name, wrong in checked.items()},
        "ok": ok,
        "verdict": verdict,
    }


def state_of(name: str) -> str | None:
    """Why a backend cannot run here, on the current GPU if it is for GPUs, or None."""
    if name != cuda.NAME or status(name):
        return status(name)
    return status_on(name, torch.device("cuda", torch.cuda.current_device()))


def _build() -> dict:
    """About the compiled extension, or that there is none."""
    try:
        extension = importlib.import_module("fastrnn._C")
    except ImportError:
        return {"build": "pure Python"}
    info = extension.build_info()
    cuda = "with CUDA" if info["cuda"] else "without CUDA"
    target = info["torch_target_version"]
    chosen = extension.isa()
    names = [f"{name} (chosen)" if name == chosen else name for name in extension.cpu_features()]
    return {
        "build": f"{info['compiler']}, {info['cxx_standard']}, for torch >= {target}, {cuda}",
        "flags": info["flags"],
        "instructions": ", ".join(names),
        **({"float32": _float32(chosen, extension.in_parts())} if extension.has_parts() else {}),
    }


def _float32(instructions: str, which: str) -> str:
    """Of how many products of bfloat16 one of float32 is made, by torch's settings, and where."""
    parts = cpu.allowed()
    if instructions != "amx":
        rounds = which != "never" and parts == 1
        return f"multiplied {'as bfloat16, as torch allows' if rounds else 'in float32'}"
    count = {1: "one product", 2: "three products", 3: "six products"}[parts]
    return "on AMX " + (which if which == "never" else f"{which}, by {count} of bfloat16 for each")


def served() -> list[tuple[str, str]]:
    """Rows on which backend "auto" takes for tensors of a device, and why not another."""
    if not torch.accelerator.is_available():
        on_gpu = f"none: {cudnn.NO_GPU}"
    else:
        major = gpu.nvidia(torch.device("cuda")) if torch.cuda.is_available() else 0
        can = [b for b in LOOPS if state_of(b.NAME) is None]
        usable = [b.NAME for b in can if choice.tried(b.NAME, major, False)]
        first = usable[0] if usable else "reference"
        lacking = first
        if not usable and can and major >= selftest.LEAST:
            usable = [can[0].NAME]
            lacking = f"{can[0].NAME} if its self-test passes, else reference"
        measured = any(row[:2] == (first, major) for row in choice.FASTER)
        on_gpu = "; ".join(
            [
                f"cudnn{f', {first} where measured faster' if measured else ''}",
                f"what torch.nn lacks: {lacking}",
                *(
                    f"not {b.NAME}: {state_of(b.NAME) or 'not yet tried on such a GPU'}"
                    for b in LOOPS
                    if b.NAME not in usable
                ),
            ]
        )
    on_cpu = "cpu"
    if cpu.not_built:
        on_cpu = f"PyTorch's own kernels; what torch.nn lacks: reference; not cpu: {cpu.not_built}"
    return [("cpu tensors", on_cpu), ("cuda tensors", on_gpu)]


def _kept() -> dict[str, str]:
    """What self-tests found on the current GPU."""
    if not torch.cuda.is_available():
        return {}
    return selftest.kept_of(torch.device("cuda", torch.cuda.current_device()))


def _tuned() -> int:
    """How many calls were measured on the current GPU."""
    if not torch.cuda.is_available():
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    return sum(len(lattice.times) for lattice in tuned.lattices(device))


def selftests() -> dict[str, str]:
    """Runs the self-tests of all built-in cells, in every precision, and tells what each found.

    They run on the current GPU, or where kernels are emulated. Later calls and processes go by the
    result."""
    results = {}
    for kernels in LOOPS:
        if reason := state_of(kernels.NAME):
            results[kernels.NAME] = f"{CANNOT}: {reason}"
            continue
        device, clock = torch.device("cpu"), lambda: 0.0  # an emulation takes what it takes
        if kernels.DEVICE == "cuda":
            device, clock = torch.device("cuda", torch.cuda.current_device()), time.perf_counter
        for dtype, tf32 in [(dtype, False) for dtype in kernels.DTYPES] + [(torch.float32, True)]:
            with _products(tf32):
                asked = {selftest.subject(kernels, cell, device, dtype): None for cell in CELLS}
                for each in asked:
                    verdict = selftest.run(kernels, each, clock=clock)
                    results[each.title] = verdict.reason or "passed"
    return results


@contextlib.contextmanager
def _products(tf32: bool) -> Iterator[None]:
    """Products of float32 in TF32, or not."""
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def check(name: str) -> str | None:
    """What is wrong with a usable backend in a tiny layer of each cell, forward and backward.

    It is compared with the reference, and the reference with `torch.nn`.
    """
    device = _device(name)
    tolerance = 1e-4 if device == "cpu" else 2e-2  # a GPU may multiply in TF32
    for title, (kind, options) in _CELLS.items():
        try:
            module = kind(3, 5, **options).to(device)
            with backend(name):
                found = _results(module)
            if name == "reference":
                state, module = module.state_dict(), kind.torch_class(3, 5, **options)
                module.load_state_dict(state)
            with backend("reference"):
                wanted = _results(module)
            for actual, expected in zip(found, wanted, strict=True):
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        except Exception as error:  # whatever it is, it is what the report is about
            return f"{title}: {' '.join(str(error).split())}"
    return None


def _device(name: str) -> str:
    """Where a backend takes tensors."""
    if name in ("cpu", "reference") or (name == "cudnn" and cpu.not_built):
        return "cpu"
    own = getattr(BACKENDS[name], "DEVICE", None)  # of kernels that are emulated
    return own or torch.accelerator.current_accelerator().type


def _results(module: torch.nn.Module) -> list[Tensor]:
    """What a call gives with gradients, with which ones, and without."""
    device = next(module.parameters()).device
    x = torch.linspace(-1, 1, 4 * 2 * 3, device=device).view(4, 2, 3).requires_grad_()
    output, _ = module(x)
    gradients = torch.autograd.grad(output.square().sum(), [x, *module.parameters()])
    with torch.no_grad():
        return [output.detach(), *gradients, module(x)[0]]


def _verdict(checked: dict[str, str | None]) -> tuple[bool, str]:
    """Whether all is well, and a line that says what serves what or what to do."""
    if checked["reference"]:  # by which the others were measured
        checked = {"reference": checked["reference"]}
    wrong = [f"backend '{name}' is wrong, {text}" for name, text in checked.items() if text]
    if cpu.not_built and "does not load" in cpu.not_built:
        wrong.insert(0, cpu.not_built)
    if wrong:
        advice = "Build fastrnn again, or keep to another backend with fastrnn.set_backend."
        return False, f"NOT OK: {'; '.join(wrong)}. {advice}"
    (_, on_cpu), (_, on_gpu) = served()
    text = f"OK: tensors on the CPU run on {on_cpu}"
    return True, f"{text}; on a GPU {on_gpu}" if torch.accelerator.is_available() else text
