"""The cells of the zoo against those of other libraries, on the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastrnn import Recurrent, zoo

T, N, I, H = 9, 4, 5, 12


def torchrecurrent():
    """Its PeepholeLSTM, IndRNN, LiGRU, MGU and UGRNN, in float64, and a sequence of each."""
    import torchrecurrent as other

    # Of each: the cell of the zoo, theirs, and their gates in the order of the zoo's.
    pairs = (
        (zoo.PeepholeLSTM, other.PeepholeLSTMCell(I, H), (0, 1, 2, 3)),
        (zoo.IndRNN, other.IndRNNCell(I, H, nonlinearity="relu"), (0,)),
        (zoo.LiGRU, other.LiGRUCell(I, H), (0, 1)),
        (zoo.MGU, other.MGUCell(I, H), (0, 1)),
        (zoo.UGRNN, other.UGRNNCell(I, H), (1, 0)),
    )
    apart = 0.0
    for cell, theirs, order in pairs:
        theirs.double()
        if cell is zoo.IndRNN:  # drawn from a normal distribution, it explodes
            nn.init.uniform_(theirs.vector_u)
        ours = Recurrent(cell, I, H, dtype=torch.float64)
        weights = {}
        for name, each in theirs.named_parameters():
            if name == "weight_ph":
                weights |= zip(("w_i_l0", "w_f_l0", "w_o_l0"), each.chunk(3), strict=True)
            elif name == "vector_u":
                weights["u_l0"] = each
            else:
                gates = each.chunk(len(order))
                weights[f"{name}_l0"] = torch.cat([gates[k] for k in order])
        if cell is zoo.IndRNN:  # ours has the bias of the input alone
            weights["bias_ih_l0"] = weights["bias_ih_l0"] + weights.pop("bias_hh_l0")
        apart = max(apart, _compare(ours, weights, theirs, theirs))
    layers = ("PeepholeLSTM", "IndRNN", "LiGRU", "MGU", "UGRNN")
    faster = [
        _faster(Recurrent(getattr(zoo, name), *LONG), getattr(other, name)(*LONG))
        for name in layers
    ]
    return (
        f"outputs and gradients within {apart:.0e}; {min(faster):.0f} to {max(faster):.0f} times "
        "as fast"
    )


def ncps():
    """Its CfC without a backbone, with time gaps, in float64, and a sequence of it."""
    from ncps.torch import CfC, CfCCell

    theirs = CfCCell(I, H, backbone_layers=0).double()
    ours = Recurrent(zoo.CfC, I, H, dtype=torch.float64)
    parts = [theirs.ff1, theirs.ff2, theirs.time_a, theirs.time_b]
    whole = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    weights = {"weight_ih_l0": whole[:, :I], "weight_hh_l0": whole[:, I:], "bias_ih_l0": bias}
    weights["bias_hh_l0"] = torch.zeros_like(bias)
    gaps = torch.rand(T, N, 1, dtype=torch.float64, requires_grad=True)
    steps = iter(gaps)
    apart = _compare(ours, weights, theirs, lambda x, h: theirs(x, h, next(steps))[0], {"dt": gaps})
    layer = CfC(*LONG, backbone_layers=0, batch_first=False)
    fast = _faster(Recurrent(zoo.CfC, *LONG), layer, inputs={"dt": torch.ones(())})
    return f"outputs and gradients within {apart:.0e}; {fast:.0f} times as fast"


LONG = (64, 64)  # input and hidden size of the sequence that is timed, which has 100 steps


@torch.no_grad()
def _faster(ours: nn.Module, theirs: nn.Module, **given) -> float:
    """How many times as fast our layer is with one sequence, the best of ten turns of each."""
    x = torch.randn(100, 1, LONG[0])
    best = [math.inf, math.inf]
    for _ in range(10):
        for k, call in enumerate((lambda: ours(x, **given), lambda: theirs(x))):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    return best[1] / best[0]


def _compare(
    ours: Recurrent,
    weights: dict[str, Tensor],
    theirs: nn.Module,
    step: Callable,
    inputs: dict[str, Tensor] | None = None,
) -> float:
    """The largest difference of outputs and of gradients by the input, the initial states, the
    parameters of `theirs`, of which `weights` are made, and `inputs`. `step(x, state)` is theirs.
    """
    cell = ours.cell
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.rand(1, N, H, dtype=torch.float64, requires_grad=True) for _ in cell.states)
    first = state if len(state) > 1 else state[0]
    output, _ = torch.func.functional_call(ours, weights, (x, first), {"inputs": inputs})
    outputs, now = [], tuple(each[0] for each in state) if len(state) > 1 else state[0][0]
    for x_t in x:
        now = step(x_t, now)
        outputs.append(now[0] if isinstance(now, tuple) else now)
    expected = torch.stack(outputs)
    leaves = [x, *state, *theirs.parameters(), *(inputs or {}).values()]
    losses = output.sin().sum(), expected.sin().sum()
    grads = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
    pairs = [(output, expected), *zip(*grads, strict=True)]
    apart = max((a - e).abs().max().item() for a, e in pairs)
    assert apart < 1e-12, f"{cell.name}: {apart}"
    return apart
