"""What runs here, what does not and why: the facts of `python -m fastrnn`."""

from __future__ import annotations

import torch

from .dispatch import LOOPS, choice, cpu, cudnn


def served() -> list[tuple[str, str]]:
    """Rows on which backend "auto" takes for tensors of a device, and why not another."""
    if not torch.accelerator.is_available():
        on_gpu = f"none: {cudnn.NO_GPU}"
    else:
        major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
        usable = [b.NAME for b in LOOPS if b.status() is None and (b.NAME, major) in choice.TRIED]
        first = usable[0] if usable else "reference"
        measured = any(row[:2] == (first, major) for row in choice.FASTER)
        on_gpu = "; ".join(
            [
                f"cudnn{f', {first} where measured faster' if measured else ''}",
                f"what torch.nn lacks: {first}",
                *(
                    f"not {b.NAME}: {b.status() or 'not yet tried on such a GPU'}"
                    for b in LOOPS
                    if b.NAME not in usable
                ),
            ]
        )
    on_cpu = "cpu"
    if cpu.not_built:
        on_cpu = f"PyTorch's own kernels; what torch.nn lacks: reference; not cpu: {cpu.not_built}"
    return [("cpu tensors", on_cpu), ("cuda tensors", on_gpu)]
