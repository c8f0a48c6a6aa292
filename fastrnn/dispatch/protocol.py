"""What a backend has: the functions of its module."""

from __future__ import annotations

from typing import Protocol

from ..call import Call
from ..results import Cotangents, Gradients, Needs, Results, Saved


class Backend(Protocol):
    """What a backend has. Names are as the user gives them to `backend`."""

    NAME: str

    @staticmethod
    def status() -> str | None:
        """Why it cannot run here, or None."""

    @staticmethod
    def obstacle(call: Call, traced: bool = False) -> str | None:
        """Why it cannot take a call, or None. traced: with what each step computed."""

    @staticmethod
    def run(call: Call, save: bool) -> Results:
        """The layer; gates, cells and hidden if `save`. Without gradients, but of `reference` and
        `cudnn`, which autograd goes through.

        Raises:
            RuntimeError: a rank, size, dtype or device does not fit, there is no time step, or, on
                the CPU, a length is not in [0, T].
        """

    @staticmethod
    def run_backward(call: Call, cotangents: Cotangents, saved: Saved, needs: Needs) -> Gradients:
        """The gradients that are needed, from what `run` saved. Not of `cudnn`."""
