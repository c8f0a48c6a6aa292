"""A case, called several times: its results and gradients against what they must be."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

import torch
from conftest import assert_matches
from torch import Tensor

import fastrnn
from fastrnn import _C

from .calls import Named, outcome
from .case import Case
from .numbers import Numbers, new_module, with_weights

_THREADS = torch.get_num_threads()  # of what is not the call itself


def bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()])


def assert_same_bits(actual: Named, expected: Named, what: str) -> None:
    assert actual.keys() == expected.keys(), f"{what}: {actual.keys()}, not {expected.keys()}"
    for name, tensor in expected.items():
        assert torch.equal(bits(actual[name]), bits(tensor)), f"{what}: other bits of {name}"


class Guard:
    """Tensors in memory of a layout, between numbers that are NaN. None of it may change."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []

    def place(self, value: Tensor, layout: str) -> Tensor:
        whole = value.shape
        shape = list(whole)
        order = list(range(value.dim()))
        if layout == "expanded":
            shape[0], value = 1, value[:1]
        elif layout == "strided":
            shape[-1] *= 2
        elif layout == "transposed":
            order.reverse()
        margin = 65 if layout == "offset" else 64
        base = value.new_full((math.prod(shape) + 2 * margin,), math.nan)
        view = base[margin:-margin].view([shape[k] for k in order]).permute(order)
        view = view[..., ::2] if layout == "strided" else view
        view.copy_(value)
        self._kept.append((base, bits(base).clone()))
        return view.expand(whole)

    def check(self) -> None:
        for base, before in self._kept:
            assert torch.equal(bits(base), before), f"memory of an input of {len(base)} changed"


def leaves(case: Case, numbers: Numbers, place: Callable[[Tensor], Tensor]):
    """x and hx, of which those require gradients that the case wants."""
    x, hx = place(numbers.x), tuple(map(place, numbers.hx))
    x.requires_grad_(case.trains and "x" in case.wanted)
    for state in hx:
        state.requires_grad_(case.trains and "s" in case.wanted)
    return x, hx


def oracle(numbers: Numbers, dtype: torch.dtype = torch.float64) -> Named:
    """What torch.nn has in a dtype, or the reference where torch.nn cannot do it."""
    case = numbers.case
    library, backend = (fastrnn, "reference") if case.beyond_torch else (torch.nn, "auto")
    if case.kind in ("step", "stream"):
        case = case._replace(kind="layer", form="padded")
    module = new_module(library, case, device="meta")
    weights = {name: weight.to(dtype) for name, weight in numbers.weights.items()}
    with_weights(module, weights, case.trains and "w" in case.wanted)
    with fastrnn.backend(backend):
        inputs = leaves(case, numbers, lambda value: value.to(dtype, copy=True))
        return outcome(case, numbers, module, *inputs, lambda *of: numbers.cotangent(*of).to(dtype))


class Ours:
    """Calls of the package, in memory that is guarded."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers, self.case, self.calls = numbers, numbers.case, 0
        self._guard, self._cotangents = Guard(), {}
        self._inputs = leaves(self.case, numbers, self._place)
        self._module = self.new_module()

    def new_module(self) -> torch.nn.Module:
        place, layout = self._guard.place, self.case.weights
        weights = {
            name: place(weight.to(self.numbers.dtype), layout)
            for name, weight in self.numbers.weights.items()
        }
        module = new_module(fastrnn, self.case, device="meta")
        return with_weights(module, weights, self.case.trains and "w" in self.case.wanted)

    def _place(self, value: Tensor) -> Tensor:
        return self._guard.place(value.to(self.numbers.dtype), self.case.layout)

    def _cotangent(self, name: str, result: Tensor) -> Tensor:
        if name not in self._cotangents:
            self._cotangents[name] = self._place(self.numbers.cotangent(name, result))
        return self._cotangents[name]

    def __call__(self, threads: int, module: torch.nn.Module | None = None, **change) -> Named:
        torch.set_num_threads(threads)
        case = self.case._replace(**change)
        module = module or self._module
        results = outcome(case, self.numbers, module, *self._inputs, self._cotangent)
        torch.set_num_threads(_THREADS)
        self.calls += 1
        self._guard.check()
        return results


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Where the CPU has it."""
    before = _C.isa()
    _C.set_isa(name if name in _C.cpu_features() else before)
    try:
        yield
    finally:
        _C.set_isa(before)


def _call_together(ours: Ours, wanted: Named) -> None:
    """From several Python threads at once, each with threads of its own."""
    case, wrong = ours.case, []
    ready = threading.Barrier(case.callers)

    def call(module: torch.nn.Module | None) -> None:
        ready.wait()
        try:
            assert_same_bits(ours(case.threads, module), wanted, "called with others")
        except Exception as error:
            wrong.append(error)

    modules = [None if case.shared else ours.new_module() for _ in range(case.callers)]
    callers = [threading.Thread(target=call, args=(module,)) for module in modules]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if wrong:
        raise wrong[0]


def _assert_near(found: Named, numbers: Numbers) -> None:
    """Within the tolerance of float64; or, in a case whose roundings grow from step to step, not
    much further from it than the same dtype is elsewhere."""
    exact, same = oracle(numbers), None
    assert found.keys() == exact.keys(), f"{found.keys()}, expected {exact.keys()}"
    for name, tensor in found.items():
        assert tensor.dtype == numbers.dtype, f"{name}: {tensor.dtype}"
        try:
            assert_matches(tensor, exact[name], name)
        except AssertionError:
            same = same or oracle(numbers, numbers.dtype)
            ours, theirs = ((t[name].double() - exact[name]).abs().max() for t in (found, same))
            if not ours <= 4 * theirs:
                raise


def check(case: Case) -> int:
    """The number of calls made. AssertionError if one of them gave what it must not."""
    numbers = Numbers(case)
    with instruction_set(case.isa):
        ours = Ours(numbers)
        found = ours(case.threads)
        _assert_near(found, numbers)
        assert_same_bits(ours(case.threads), found, "called again")
        # torch's own function of one step is PyTorch's to promise.
        if not (case.kind == "cell" and case.cell.startswith("rnn")):
            if case.threads > 1:
                assert_same_bits(ours(1), found, "on one thread")
            if case.trains:
                results = {k: v for k, v in found.items() if not k.startswith("grad ")}
                inferred = ours(case.threads, loss="no_grad")
                assert_same_bits(inferred, results, "without gradients")
        if case.callers > 1:
            _call_together(ours, found)
    return ours.calls
