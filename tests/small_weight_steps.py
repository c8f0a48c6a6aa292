"""Steps of a stream of small weights, and a plain loop that quantises as the documentation says.

The loop goes on from the stream's own states, so both round the same numbers at every step."""

import torch
from conftest import assert_matches
from torch import Tensor

from fastrnn import Streamer

ALL_INT8 = {"*": "int8"}


def whole_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers, as int64, and the scale of each row."""
    scale = weight.abs().amax(1) / 127
    return torch.nan_to_num(weight / scale[:, None]).round().long(), scale


def whole_activations(x: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Whole numbers as int64 and the scale of each row: units at the largest of a row."""
    largest = x.abs().amax(1)
    # Not units / largest, which torch makes a product with a reciprocal.
    factor = torch.where(largest > 0, torch.tensor(float(units)) / largest, 0.0)
    return (x * factor[:, None]).round().long(), largest / units


def product(x: Tensor, weight: Tensor, format: str | None, narrow: bool) -> Tensor:
    if format != "int8":
        kept = weight if format is None else weight.to(getattr(torch, format))
        return (x.double() @ kept.double().T).float()
    units = 127 if narrow else min(32767, (2**31 - 1) // (127 * weight.size(1)))
    (w, w_scale), (q, q_scale) = whole_weights(weight), whole_activations(x, units)
    sums = q @ w.T
    assert sums.abs().max() < 2**31
    return sums.float() * w_scale * q_scale[:, None]


def cell(module, x, u, h, c):
    if module.mode == "LSTM":
        i, f, g, o = (x + u).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if module.mode == "GRU":
        (x_r, x_z, x_n), (u_r, u_z, u_n) = x.chunk(3, 1), u.chunk(3, 1)
        z = (x_z + u_z).sigmoid()
        n = (x_n + (x_r + u_r).sigmoid() * u_n).tanh()
        return (1 - z) * n + z * h, None
    return ((x + u).relu() if module.mode == "RNN_RELU" else (x + u).tanh()), None


def stepped(stream: Streamer, module, frame: Tensor, formats, narrow=False):
    """(y, states) of the stream after a frame, and what the loop makes of each layer."""
    before = stream.state
    y = stream(frame).clone()
    after, x, wanted = stream.state, frame, []
    for k in range(module.num_layers):
        own = {
            n[: -len("_l0")]: w.detach() for n, w in module.named_parameters() if n[-1] == str(k)
        }
        h, c = (s[k] for s in before) if module.mode == "LSTM" else (before[k], None)
        parts = []
        for side, left in (("ih", x), ("hh", h)):
            part = product(left, own[f"weight_{side}"], formats(f"weight_{side}_l{k}"), narrow)
            parts.append(part + own.get(f"bias_{side}", torch.zeros(1)))
        h, c = cell(module, *parts, h, c)
        if module.proj_size:
            h = product(h, own["weight_hr"], formats(f"weight_hr_l{k}"), narrow)
        wanted.append((h, c))
        x = after[0][k] if module.mode == "LSTM" else after[k]
    return y, after, wanted


def assert_steps(module, batch: int, weights, activations=None, frames=None) -> None:
    def formats(name):
        if isinstance(weights, dict):
            return weights.get(name, weights.get("*"))
        return None if (weights, name) == ("int8", "weight_ih_l0") else weights

    stream = Streamer(module, batch, weights=weights, activations=activations)
    for frame in torch.randn(6, batch, module.input_size) if frames is None else frames:
        y, after, wanted = stepped(stream, module, frame, formats, activations == "int8")
        for k, (h, c) in enumerate(wanted):
            assert_matches(after[0][k] if c is not None else after[k], h, f"layer {k}")
            if c is not None:
                assert_matches(after[1][k], c, f"c of layer {k}")
        assert torch.equal(y, after[0][-1] if wanted[-1][1] is not None else after[-1])
