"""Which contenders take part in which job. The first of each is ours, and the figure that other
contenders' rows are read against is the first of torch.nn."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from bench.cases import STEPS, Spec
from bench.contenders import BASELINE, OURS, Contender, compiled, graph, in_float32, module_of
from bench.features import LAST, LENGTHS, LOOP, RESET, STATES
from bench.functions import FUNCTION
from bench.gradients import FUNC_GRAD, INPUT_GRADIENT, LOSS_AND_PENALTY, PENALTY, PER_SAMPLE
from bench.packing import PACKED, PADDED
from bench.peers import LIBRARIES, RUNTIMES, SMALL_RUNTIMES, STEP_RUNTIMES
from bench.published import OF_ZOO
from bench.streaming import CHUNK, SMALL, STEP


def forced(backend: str, ours: Contender = OURS) -> Contender:
    def around():
        library = importlib.import_module("fastrnn")
        if (reason := library.backends().get(backend)) != "usable":
            raise ImportError(reason or f"this fastrnn has no backend {backend}")
        return library.backend(backend)

    return replace(
        ours,
        name=f"fastrnn {backend}",
        around=around,
        asked=True,
    )


@contextmanager
def _allowed(precision: str) -> Iterator[None]:
    """torch told that much of its own products of float32 in recurrent layers."""
    products = torch.backends.mkldnn.rnn
    told, products.fp32_precision = products.fp32_precision, precision
    try:
        yield
    finally:
        products.fp32_precision = told


def _on_amx(precision: str) -> Contender:
    """Ours, on the tiles of AMX, as `_allowed`."""

    @contextmanager
    def around() -> Iterator[None]:
        kernels = importlib.import_module("fastrnn._C")
        if kernels.isa() != "amx":
            raise ImportError(f"the instruction set is {kernels.isa()}, not amx")
        cpu, before = importlib.import_module("fastrnn.dispatch.cpu"), kernels.in_parts()
        cpu.set_in_parts("always")
        try:
            with _allowed(precision):
                yield
        finally:
            cpu.set_in_parts(before)

    name = f"fastrnn in parts{'' if precision == 'ieee' else f', {precision}'}"
    return _of_float32(OURS, name, around, {"ieee": 0.0, "tf32": 1e-3, "bf16": 8e-2}[precision])


def _rounded(contender: Contender) -> Contender:
    """The same, told that products may be of numbers rounded to bfloat16."""

    def around():
        if contender is OURS and not importlib.import_module("fastrnn._C").has_parts():
            raise ImportError("this CPU gains nothing from products of bfloat16")
        return _allowed("bf16")

    return _of_float32(contender, f"{contender.name} rounded", around, tolerance=8e-2)


def _of_float32(contender: Contender, name: str, around: Callable, tolerance: float) -> Contender:
    return replace(
        contender,
        name=name,
        around=around,
        devices=("cpu",),
        dtypes=("float32",),
        tolerance=tolerance,
        asked=True,
    )


JOBS: dict[str, tuple[Contender, ...]] = {
    "layer": (
        OURS,
        BASELINE,
        *RUNTIMES,
        *map(forced, ("cpu", "reference", "triton", "cuda", "cudnn")),
        replace(
            BASELINE,
            name="torch.nn compiled",
            prepare=module_of("torch.nn", compiled),
            fits=lambda spec: spec.cell not in STEPS and spec.case.T <= 8,
            asked=True,
        ),
        graph(OURS),
        graph(BASELINE),
        in_float32(OURS),
        *map(_on_amx, ("ieee", "tf32", "bf16")),
        *map(_rounded, (OURS, BASELINE)),
        *LIBRARIES,
    ),
    "packed": (
        *PACKED,
        *RUNTIMES,
        PADDED,
        *(forced(backend, PACKED[0]) for backend in ("triton", "cuda", "cudnn")),
    ),
    "loop": LOOP,
    "last": LAST,
    "input gradient": INPUT_GRADIENT,
    "penalty": PENALTY,
    "loss and penalty": LOSS_AND_PENALTY,
    "func.grad": FUNC_GRAD,
    "per sample": PER_SAMPLE,
    "reset": RESET,
    "lengths": LENGTHS,
    "states": STATES,
    "function": FUNCTION,
    "published": OF_ZOO,
    "step": STEP + STEP_RUNTIMES,
    "chunk": CHUNK + STEP_RUNTIMES,
    "small step": SMALL + SMALL_RUNTIMES,
}


def baseline(job: str) -> Contender:
    return next(one for one in JOBS[job] if one.name.startswith("torch.nn"))


def find(job: str, name: str) -> Contender:
    return next(one for one in JOBS[job] if one.name == name)


def names() -> list[str]:
    """Of all contenders there are."""
    return list(dict.fromkeys(one.name for some in JOBS.values() for one in some))


def entrants(
    spec: Spec, wanted: tuple[str, ...] = (), extra: tuple[str, ...] = ()
) -> list[Contender]:
    """Those that take `spec`: the `wanted`, or else all that need not be asked for and `extra`. The
    baseline is always among them, for without it there is no ratio."""
    base = baseline(spec.case.job).name

    def listed(one: Contender) -> bool:
        if wanted:
            return one.name in wanted or one.name == base
        return not one.asked or one.name in extra

    return [one for one in JOBS[spec.case.job] if listed(one) and one.takes(spec)]
