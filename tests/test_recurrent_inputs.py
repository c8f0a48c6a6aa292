"""What a call gives a cell that is a function: its inputs, and states to begin from anew."""

from __future__ import annotations

import pytest
import torch
from recurrent_calls import Example, mask
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# Of three states and more, one of which is not the first, and one that is not the output.
SEVERAL = ["mc_lstm", "slstm", "unicornn"]


def test_packed_input_and_inputs():
    """Inputs as a PackedSequence, as rows, and for each unit, as lengths would have it."""
    lengths = [4, 6, 1]
    for name in ("cfc", "decaying_lstm", "zoneout_lstm"):
        example = Example(name, 6, 3, 5, 8)
        packed = pack_padded_sequence(example.x, lengths, enforce_sorted=False)
        inputs = {
            k: pack_padded_sequence(v, lengths, enforce_sorted=False) if v.dim() == 3 else v
            for k, v in example.inputs.items()
        }
        output, state = example.module(packed, inputs=inputs)
        wanted, wanted_state = example.module(
            example.x, inputs=example.inputs, lengths=torch.tensor(lengths)
        )
        assert torch.equal(pad_packed_sequence(output)[0], wanted)
        for a, e in zip(
            torch.utils._pytree.tree_leaves(state),
            torch.utils._pytree.tree_leaves(wanted_state),
            strict=True,
        ):
            assert torch.equal(a, e)
        rows = {k: v.data if isinstance(v, PackedSequence) else v for k, v in inputs.items()}
        assert torch.equal(example.module(packed, inputs=rows)[0].data, output.data)


@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_broadcast(batch_first):
    """Every shape that broadcasts to the rows and units, in the user's order of dimensions."""
    example = Example("cfc", 4, 3, 5, 6, batch_first=batch_first)
    sizes = example.x.shape[:2]
    number, _ = example.module(example.x, inputs={"dt": 2})
    same, _ = example.module(example.x, inputs={"dt": torch.full((), 2.0, dtype=torch.float64)})
    assert torch.equal(number, same)
    time = 1 if batch_first else 0
    y, _ = example.module.step(example.x.select(time, 0), inputs={"dt": 2})
    torch.testing.assert_close(y, number.select(time, 0))
    alone, _ = example.module(example.x.select(1 - time, 1), inputs={"dt": 2})
    torch.testing.assert_close(alone, number.select(1 - time, 1))
    for shape in ((), (1,), (6,), (1, 1, 6), (sizes[0], 1, 1), (1, sizes[1], 1), (*sizes, 6)):
        dt = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        whole = dt.detach().expand(*sizes, 6).clone().requires_grad_()
        output, _ = example.module(example.x, inputs={"dt": dt})
        wanted, _ = example.module(example.x, inputs={"dt": whole})
        torch.testing.assert_close(output, wanted, rtol=1e-13, atol=1e-14)
        grad, wanted_grad = (
            torch.autograd.grad(y.sin().sum(), d)[0] for y, d in ((output, dt), (wanted, whole))
        )
        torch.testing.assert_close(grad, wanted_grad.sum_to_size(shape))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["decaying_lstm", "zoneout_lstm", "original_gru", *SEVERAL])
def test_reset_to_given_states(name, batch_first):
    """As a loop of steps has it, inputs of each row among what is laid out anew."""
    T, N = 7, 4
    example = Example(name, T, N, 3, 9, num_layers=2, batch_first=batch_first)
    module, time = example.module, 1 if batch_first else 0
    reset = mask(T, N)
    begin = tuple(torch.rand_like(each) for each in example.hx)
    given = begin if len(begin) > 1 else begin[0]
    leaves = [*example.leaves(), *begin]
    for leaf in leaves:
        leaf.requires_grad_()
    state = example.hx if len(begin) > 1 else example.hx[0]
    outputs = []
    for t in range(T):
        inputs = {k: v.select(time, t) if v.dim() == 3 else v for k, v in example.inputs.items()}
        where = reset[t].view(1, -1, 1)
        old = state if isinstance(state, tuple) else (state,)
        state = tuple(torch.where(where, b, s) for b, s in zip(begin, old, strict=True))
        state = state if len(state) > 1 else state[0]
        y, state = module.step(example.x.select(time, t), state, inputs=inputs or None)
        outputs.append(y)
    wanted = torch.stack(outputs, time)
    (output, *_) = example(reset=reset.t() if batch_first else reset, reset_state=given)
    torch.testing.assert_close(output, wanted)
    grads, wanted_grads = (
        torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True, materialize_grads=True)
        for y in (output, wanted)
    )
    for a, e in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(a, e)


def test_masks_and_whole_numbers_are_inputs():
    for name, values in (("zoneout_lstm", mask(4, 3, 6)), ("cfc", torch.randint(9, (4, 3, 1)))):
        example = Example(name, 4, 3, 5, 6)
        given = dict.fromkeys(example.inputs, values)
        output, _ = example.module(example.x, inputs=given)
        wanted, _ = example.module(example.x, inputs={k: v.double() for k, v in given.items()})
        assert torch.equal(output, wanted)
        y, _ = example.module.step(example.x[0], inputs={k: v[0] for k, v in given.items()})
        torch.testing.assert_close(y, output[0])
        with pytest.raises(RuntimeError, match="input (dt|keep_h) must have the same dtype"):
            example.module(example.x, inputs={k: v.float() for k, v in given.items()})


def test_inputs_have_names():
    example = Example("cfc", 4, 3, 5, 6)
    with pytest.raises(TypeError, match="inputs should be a dict of tensors by name, got Tensor"):
        example.module(example.x, inputs=example.inputs["dt"])
    with pytest.raises(TypeError, match="got Tensor"):
        example.module.step(example.x[0], inputs=example.inputs["dt"][0])
    with pytest.raises(ValueError, match="cfc needs inputs={'dt'}, got 'time'"):
        example.module(example.x, inputs={"time": example.inputs["dt"]})
    with pytest.raises(ValueError, match="cfc needs inputs={'dt'}, got 'dt', 1"):
        example.module(example.x, inputs={"dt": 1, 1: 1})
    for wrong in (
        torch.rand(4, 3, 6).to_sparse(),
        torch.nested.nested_tensor([torch.rand(3, 6)] * 4),
    ):
        with pytest.raises(RuntimeError, match="input dt must be a dense tensor"):
            example.module(example.x, inputs={"dt": wrong})
    with pytest.raises(ValueError, match="input dt is too large"):
        example.module(example.x, inputs={"dt": 10**400})
    example()
