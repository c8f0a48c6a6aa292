"""A short training with `torch.nn` and with ours, and how far they are apart."""

from __future__ import annotations

import torch
from torch import nn

import fastrnn


def steps(make, loss, count=5) -> tuple[nn.Module, list[float]]:
    """The model and its losses, from the same seed each time."""
    torch.manual_seed(0)
    model, losses = make(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(count):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return model, losses


def compare(make, loss, *swaps) -> str:
    """Trains with torch.nn, and with ours by patch() and by convert()."""
    _, wanted = steps(make, loss)

    def patched():
        with fastrnn.patch():
            return make()

    apart = 0.0
    for swapped in swaps or (patched, lambda: fastrnn.convert(make())):
        model, losses = steps(swapped, loss)
        ours = [m for m in model.modules() if isinstance(m, fastrnn.RNNBase)]
        assert ours, "no module of ours in the model"
        apart = max(apart, *(abs(a - e) for a, e in zip(losses, wanted, strict=True)))
    assert apart < 1e-4, apart
    return f"losses of 5 steps within {apart:.0e}"
