"""What a transform of `torch.func` cannot go through: the error says what to call instead."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_matches
from program_cells import CELLS
from torch.func import functional_call, functionalize, grad, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch_pairs import layers

import fastrnn

N, I, H = 2, 4, 3
WHERE = pytest.mark.parametrize(
    "through",
    [
        lambda f, x: vmap(f)(x.expand(5, *x.shape)),
        lambda f, x: grad(lambda x: f(x).sum())(x),
        lambda f, x: jvp(f, (x,), (x,)),
        lambda f, x: functionalize(f)(x),
    ],
    ids=["vmap", "grad", "jvp", "functionalize"],
)


def refuses(call) -> None:
    with pytest.raises(RuntimeError, match=r"a Streamer does not work .* module.step"):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@WHERE
def test_a_stream(through, dtype):
    module, x = fastrnn.GRU(I, H, dtype=dtype), torch.randn(N, I, dtype=dtype)
    stream = fastrnn.Streamer(module, N)
    y = stream(x).clone()
    state = stream.state
    for call in (
        lambda x: stream(x),
        lambda x: stream(x * 2),
        lambda x: (stream.load_state(state * x.sum()), x)[1],
        lambda x: (stream.reset(), x)[1],
        lambda x: (stream.refresh(), x)[1],
        lambda x: fastrnn.Streamer(module, N)(x),
    ):
        refuses(lambda call=call: through(call, x))
    assert torch.equal(stream.state, state)
    through(lambda x: module.step(x)[0], x)  # what the error names
    assert_matches(stream(x), module.step(x, state)[0])
    stream.reset()
    assert torch.equal(stream(x), y)


@WHERE
def test_inputs_of_a_stream(through):
    module = fastrnn.Recurrent(CELLS["cfc"], I, H)
    stream, x, dt = fastrnn.Streamer(module, N), torch.randn(N, I), torch.rand(N, H)
    refuses(lambda: through(lambda dt: stream(x, {"dt": dt}), dt))
    through(lambda dt: module.step(x, inputs={"dt": dt})[0], dt)
    assert_matches(stream(x, {"dt": dt}), module.step(x, inputs={"dt": dt})[0])


def test_weights_of_a_stream():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = fastrnn.GRU(I, H)

        def forward(self, x):
            return fastrnn.Streamer(self.gru, N)(x)

    model, x = Model(), torch.randn(N, I)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    refuses(lambda: grad(lambda p: functional_call(model, p, (x,)).sum())(parameters))
    several = {name: torch.stack([p] * 3) for name, p in parameters.items()}
    refuses(lambda: vmap(lambda p: functional_call(model, p, (x,)))(several))
    assert_matches(model(x), model.gru.step(x)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, in packing
@pytest.mark.parametrize("grad_mode", [True, False])
@layers
def test_sequences_packed_inside_vmap(name, grad_mode):
    """torch.nn raises an error of the same class, about `item`."""
    module, theirs = (getattr(of, name)(I, H) for of in (fastrnn, torch.nn))
    x, lengths = torch.randn(6, 5, N, I), torch.tensor([[5, 3]] * 6)
    packed = pack_padded_sequence(x[0], lengths[0])
    sizes = packed.batch_sizes.expand(6, -1)

    def call(module, x, lengths):
        return module(pack_padded_sequence(x, lengths))[0].data

    with torch.set_grad_enabled(grad_mode):
        for run in (
            lambda module: vmap(call, (None, 0, 0))(module, x, lengths),
            lambda module: vmap(lambda x: call(module, x, [5, 3]))(x),
            lambda module: vmap(lambda s: module(PackedSequence(packed.data, s))[0].data)(sizes),
        ):
            with pytest.raises(RuntimeError):
                run(theirs)
            with pytest.raises(RuntimeError, match="give padded input and lengths="):
                run(module)
        outputs = vmap(lambda x, lengths: module(x, lengths=lengths)[0])(x, lengths)
        again = pack_padded_sequence(outputs[0], lengths[0]).data
        assert_matches(module(packed)[0].data, again)
