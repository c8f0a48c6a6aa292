"""Layers of cells that are functions: every cell, feature and form of input, on the kernels."""

from __future__ import annotations

import pytest
import torch
from program_cells import CELLS
from recurrent_calls import EXACT, Example, assert_as_defined, mask
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import Cell, Recurrent
from fastrnn.dispatch import cpu

FORMS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "batch_first": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXACT)
def test_cells(name, form):
    """Units that fill no register, one row, many rows."""
    for T, N, I, H in ((6, 5, 3, 13), (4, 1, 6, 40), (3, 41, 2, 9), (2, 3, 1, 1)):
        assert_as_defined(Example(name, T, N, I, H, **FORMS[form]))


@pytest.mark.parametrize("name", EXACT)
def test_instruction_sets(name, isa):
    for dtype in (torch.float32, torch.float64):
        assert_as_defined(Example(name, 5, 7, 4, 33, dtype))


@pytest.mark.parametrize("name", [n for n in EXACT if n != "lif"])  # which jumps where others round
def test_bfloat16(name, isa):
    assert_as_defined(Example(name, 4, 5, 6, 20, torch.bfloat16, num_layers=2))


@pytest.mark.parametrize("name", EXACT)
def test_features(name):
    T, N = 7, 6
    lengths = torch.tensor([7, 0, 3, 1, 7, 5])
    for features in (
        {"reset": mask(T, N)},
        {"lengths": lengths},
        {"lengths": lengths, "reset": mask(T, N)},
        {"detach_every": 3},
        {"grad_clip": 1e-2},
    ):
        assert_as_defined(Example(name, T, N, 3, 10), **features)
    assert_as_defined(Example(name, T, N, 3, 10, bidirectional=True), lengths=lengths)
    assert_as_defined(
        Example(name, T, N, 3, 10, bidirectional=True, num_layers=2), detach_every=2, grad_clip=0.1
    )


@pytest.mark.parametrize("name", EXACT)
def test_states(name):
    """Every state of every step, by name, with gradients; also of one that is not the output."""
    two = Example(name, 6, 3, 4, 8, num_layers=2, bidirectional=True)
    assert_as_defined(two, return_states=True, lengths=torch.tensor([2, 6, 0]), grad_clip=0.05)
    example = Example(name, 5, 3, 4, 11, num_layers=2, batch_first=True)
    assert_as_defined(example, return_states=True)
    *_, states = example.module(example.x, inputs=example.inputs or None, return_states=True)
    output, state = example.module(example.x, inputs=example.inputs or None)
    state = state if isinstance(state, tuple) else (state,)
    assert list(states) == list(example.cell.states)
    assert torch.equal(states[example.cell.output][-1].flatten(-2), output)
    for name, last in zip(states, state, strict=True):
        for layer, each in enumerate(states[name]):
            assert torch.equal(each[:, -1, 0], last[layer])


OTHER_OUTPUT = [n for n in EXACT if CELLS[n].output != CELLS[n].recurrent]


@pytest.mark.parametrize("name", OTHER_OUTPUT)
def test_recurrent_states_that_are_not_the_output(name, isa):
    """Their gradient alone, in every dtype, derived again, and after a write in place."""
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_defined(Example(name, 5, 7, 4, 33, dtype), return_states=True)
    example = Example(name, 5, 3, 4, 7, num_layers=2)
    leaves, recurrent = example.leaves(), example.cell.recurrent
    for leaf in leaves:
        leaf.requires_grad_()
    found = []
    for backend in ("auto", "reference"):
        with fastrnn.backend(backend):
            hx = example.hx if len(example.hx) > 1 else example.hx[0]
            inputs = example.inputs or None
            *_, states = example.module(example.x, hx, inputs=inputs, return_states=True)
            first, last = states[recurrent]
            loss = first.sin().sum() + last[2:].clone().sin().sum()
            last.detach().zero_()
            grads = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            whole = sum(each.square().sum() for each in grads)
            found.append(grads + torch.autograd.grad(whole, leaves, materialize_grads=True))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)


def test_projection():
    """A projected state that no step reads; its width is that of the output."""
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        example = Example("lstm", 5, 4, 3, 12, proj_size=7, **options)
        assert_as_defined(example)
        assert_as_defined(example, grad_clip=0.05)
    with pytest.raises(ValueError, match="its step reads the state h"):
        Recurrent(CELLS["gru"], 3, 12, proj_size=7)


@pytest.mark.parametrize(
    ("name", "kind"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU), ("rnn", torch.nn.RNN)]
)
def test_written_as_functions_the_cells_of_torch_are_those(name, kind):
    """The same parameters, results and gradients as torch.nn, also packed."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    if name == "gru":  # r, z and n of one weight are x: and u: gates of another
        pytest.importorskip("fastrnn._C")
    ours = Recurrent(CELLS[name], 5, 9, **options)
    theirs = kind(5, 9, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    packed = pack_padded_sequence(x, [6, 2, 4], enforce_sorted=False)
    for given in (x, packed, x[:, 0]):
        grads = []
        for module in (ours, theirs):
            output, state = module(given)
            output = output.data if isinstance(output, PackedSequence) else output
            loss = output.sin().sum()
            loss = loss + sum(s.sum() for s in (state if isinstance(state, tuple) else (state,)))
            grads.append((output, *torch.autograd.grad(loss, list(module.parameters()))))
        for a, e in zip(*grads, strict=True):
            torch.testing.assert_close(a, e)


def test_steps_and_unbatched_input():
    """Step by step as at once; input without a batch as with a batch of one."""
    for name in ("decaying_lstm", "zoneout_lstm", "peephole", "layer_norm_lstm"):
        example = Example(name, 5, 3, 4, 9, num_layers=2)
        module, inputs = example.module, example.inputs
        output, state = module(example.x, inputs=inputs or None)
        now = None
        for t in range(5):
            at_t = {k: v[t] if v.dim() == 3 else v for k, v in inputs.items()}
            y, now = module.step(example.x[t], now, inputs=at_t or None)
            torch.testing.assert_close(y, output[t])
        torch.testing.assert_close(now, state)
        alone = {k: v[:, 1] if v.dim() == 3 else v for k, v in inputs.items()}
        y, last = module(example.x[:, 1], inputs=alone or None)
        torch.testing.assert_close(y, output[:, 1])
        assert all(a.shape == e[:, 1].shape for a, e in zip(last, state, strict=True))


@pytest.mark.parametrize(
    "name", ["peephole", "gru", "decaying_lstm", "mc_lstm", "layer_norm_lstm", "rg_lru"]
)
@pytest.mark.parametrize(("T", "N", "H"), [(6, 2, 520), (5, 48, 130), (9, 1, 700), (40, 5, 200)])
def test_threads(name, T, N, H):
    """Threads that share rows, units or both give the same bits as one."""
    example = Example(name, T, N, 40, H, torch.float32)
    before, found = torch.get_num_threads(), []
    weights = None
    for threads in (1, 2, 3, 5, 10):
        torch.set_num_threads(threads)
        results, grads, weights = example.gradients(weights)
        found.append([*results, *grads])
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, e) for a, e in zip(others, found[0], strict=True))


@pytest.mark.skipif(cpu.not_built is not None, reason="looks at the split of compiled kernels")
def test_threads_share_units_and_rows():
    """The sizes above reach every way to share a step."""
    from fastrnn._C import split_step

    assert split_step(2, 4 * 520, 520, 4, 2, 9)[1] == 2
    assert split_step(48, 4 * 130, 130, 4, 2, 3)[0] == 2
    assert split_step(5, 4 * 200, 200, 4, 10, 7)[:2] == [2, 5]


def test_zero_gradients():
    """A loss on the last step, with params that have gradients where no gate has any."""

    def leak(g, s, p):
        return torch.tanh(g.x_a * 0 + p.w * s.h)

    cell = Cell(leak, "x:a", params="w")
    module = Recurrent(cell, 3, 20, dtype=torch.float64)
    x, h0 = torch.randn(300, 4, 3, dtype=torch.float64), torch.rand(1, 4, 20, dtype=torch.float64)
    grads = []
    for backend in ("auto", "reference"):
        with fastrnn.backend(backend):
            output, _ = module(x, h0)
            grads.append(torch.autograd.grad(output[-1].sum(), [module.w_l0, module.weight_ih_l0]))
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e)


def test_not_a_number_stays_in_its_row():
    example = Example("peephole", 5, 4, 3, 18)
    example.x[2, 1, 0] = torch.nan
    output = example()[0]
    assert output[2:, 1].isnan().all()
    assert output[:2, 1].isfinite().all() and output[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("name", ["slstm", "gru", "layer_norm_lstm", "rnn", "mgu"])
@pytest.mark.parametrize(("H", "heads"), [(128, 2), (256, 4), (12, 3)])
def test_heads(name, H, heads):
    """A block-diagonal recurrent product, as one with zeros between the blocks."""
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        for dtype in (torch.float64, torch.float32):
            example = Example(name, 4, 5, 3, H, dtype, heads=heads, **options)
            assert example.module.weight_hh_l0.size(1) == H // heads
            assert_as_defined(example)
    example = Example(name, 300, 1, 3, H, torch.float32, heads=heads)
    assert_as_defined(example)


@pytest.mark.parametrize("options", [{"heads": 2}, {"heads": 4}, {"proj_size": 5}])
def test_a_second_product_goes_with_neither_heads_nor_a_projection(options):
    for name in ("original_gru", "multiplicative_lstm"):
        for H in (128, 12):
            with pytest.raises(ValueError, match=f"{name} has a second product"):
                Recurrent(CELLS[name], 3, H, **options)
            Recurrent(CELLS[name], 3, H)


def test_heads_see_their_own_part():
    module = Recurrent(CELLS["rnn"], 3, 128, heads=2, dtype=torch.float64)
    dense = Recurrent(CELLS["rnn"], 3, 128, dtype=torch.float64)
    weights = module.state_dict()
    compact = weights["weight_hh_l0"]
    weights["weight_hh_l0"] = torch.block_diag(compact[:64], compact[64:])
    dense.load_state_dict(weights)
    x, h0 = torch.randn(6, 2, 3).double(), torch.randn(1, 2, 128).double()
    torch.testing.assert_close(module(x, h0), dense(x, h0))
    h0[..., 100] = torch.nan  # stays with its head
    assert module(x, h0)[0][..., :64].isfinite().all()
    with pytest.raises(ValueError, match="heads must divide hidden_size"):
        Recurrent(CELLS["rnn"], 3, 10, heads=3)
