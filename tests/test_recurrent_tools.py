"""`Recurrent` under PyTorch's tools, its bookkeeping, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from direct_ways import long_way
from program_cells import CELLS, peephole
from project import ROOT
from recurrent_calls import EXACT, Example
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import Cell, Recurrent
from fastrnn.dispatch import cpu

SOME = ("peephole", "decaying_lstm", "mc_lstm", "rg_lru", "layer_norm_lstm")
needs_kernels = pytest.mark.skipif(cpu.not_built is not None, reason="looks at compiled kernels")


@pytest.mark.parametrize("name", SOME)
def test_compile(name):
    torch._dynamo.reset()
    example = Example(name, 5, 3, 4, 8, torch.float32, num_layers=2, bidirectional=True)
    eager, grads, weights = example.gradients()
    whole = example.module
    example.module = torch.compile(whole, fullgraph=True, backend="aot_eager")
    example.module.parameters = whole.parameters
    compiled, compiled_grads, _ = example.gradients(weights)
    for a, e in zip([*compiled, *compiled_grads], [*eager, *grads], strict=True):
        torch.testing.assert_close(a, e)


def test_compile_with_states_of_another_output():
    torch._dynamo.reset()
    example = Example("unicornn", 5, 3, 4, 8, torch.float32, num_layers=2)
    eager, grads, weights = example.gradients(return_states=True)
    whole = example.module
    example.module = torch.compile(whole, fullgraph=True, backend="aot_eager")
    example.module.parameters = whole.parameters
    compiled, compiled_grads, _ = example.gradients(weights, return_states=True)
    for a, e in zip([*compiled, *compiled_grads], [*eager, *grads], strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", SOME)
def test_export_and_load_in_another_process(name, tmp_path):
    """A program that names a cell runs where the cell was made, and elsewhere says what to do."""
    example = Example(name, 5, 3, 4, 8, torch.float32)
    inputs = example.inputs or None
    program = torch.export.export(example.module, (example.x,), {"inputs": inputs})
    file = tmp_path / "program.pt2"
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()(example.x, inputs=inputs)
    for a, e in zip(
        tree_leaves(loaded), tree_leaves(example.module(example.x, inputs=inputs)), strict=True
    ):
        torch.testing.assert_close(a, e)
    if name == "peephole":
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import torch, fastrnn; "
            f"torch.export.load({str(file)!r}).module()(torch.zeros(5, 3, 4), inputs=None)"
        )
        error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
        assert "make its `Cell` first" in error or "unknown cell" in error


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("features", [{}, {"detach_every": 2, "grad_clip": 0.1}])
def test_ops(name, features):
    """The custom ops of a call: schema, fakes, autograd."""
    example = Example(name, 3, 2, 4, 5, torch.float64)
    seen = []
    before = fastrnn.stack.dispatch.choose

    def watch(call, *rest):
        seen.append(call)
        return before(call, *rest)

    fastrnn.stack.dispatch.choose = watch
    try:
        with long_way():
            example(**features)
    finally:
        fastrnn.stack.dispatch.choose = before
    call = seen[0].with_tensors([t.detach().requires_grad_() for t in seen[0].tensors()])
    torch.library.opcheck(torch.ops.fastrnn.layer_forward, tuple(call))
    torch.library.opcheck(
        torch.ops.fastrnn.layer_inference,
        tuple(call.with_tensors([t.detach() for t in call.tensors()])),
    )


def test_second_derivatives():
    for name in ("peephole", "gru", "decaying_lstm"):
        example = Example(name, 3, 2, 3, 4)
        hx = example.hx if len(example.hx) > 1 else example.hx[0]

        def of(x, example=example, hx=hx):
            return example.module(x, hx, inputs=example.inputs or None)[0]

        x = example.x.requires_grad_()
        assert torch.autograd.gradgradcheck(of, (x,))
        assert torch.autograd.gradcheck(of, (x,), check_forward_ad=True, check_batched_grad=True)


def test_function_transforms():
    example = Example("peephole", 4, 3, 5, 6)
    module, x = example.module, example.x
    parameters = {k: v.detach() for k, v in module.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x[:, None],))[0].sin().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for n in range(3):
        alone = torch.func.grad(loss)(parameters, x[:, n])
        for name, grad in alone.items():
            torch.testing.assert_close(each[name][n], grad)


def test_autocast():
    """bfloat16 on the CPU, with the dtypes of an LSTM: every result is the autocast dtype's."""
    example = Example("peephole", 6, 3, 8, 16, torch.float32)
    exact = tree_leaves(example.module(example.x))
    with torch.autocast("cpu", torch.bfloat16):
        results = tree_leaves(example.module(example.x))
    for a, e in zip(results, exact, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), e, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", EXACT)
def test_copies_and_state(name, tmp_path):
    """deepcopy, pickle, torch.save and state_dict keep a module; half precision and meta run."""
    example = Example(name, 3, 2, 4, 6, torch.float32, num_layers=2)
    inputs = example.inputs or None
    wanted = example.module(example.x, inputs=inputs)[0]
    whole = io.BytesIO()
    torch.save(example.module, whole)
    whole.seek(0)
    fresh = Recurrent(example.cell, 4, 6, num_layers=2)
    fresh.load_state_dict(example.module.state_dict())
    for module in (
        copy.deepcopy(example.module),
        pickle.loads(pickle.dumps(example.module)),
        torch.load(whole, weights_only=False),
        fresh,
    ):
        assert torch.equal(module(example.x, inputs=inputs)[0], wanted)
    half = copy.deepcopy(example.module).half()
    given = inputs and {k: v.half() for k, v in inputs.items()}
    assert half(example.x.half(), inputs=given)[0].dtype == torch.float16
    meta = copy.deepcopy(example.module).to("meta")
    given = inputs and {k: v.to("meta") for k, v in inputs.items()}
    assert meta(example.x.to("meta"), inputs=given)[0].shape == wanted.shape


def test_names_of_parameters():
    """Weights are named as in torch.nn, learned params as in the cell."""
    module = Recurrent(CELLS["peephole"], 3, 5, num_layers=2, bidirectional=True)
    names = [
        f"{n}_l{k}{r}"
        for k in (0, 1)
        for r in ("", "_reverse")
        for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "w_i", "w_f", "w_o")
    ]
    assert [name for name, _ in module.named_parameters()] == names
    assert module.weight_ih_l1.shape == (20, 10) and module.w_f_l1_reverse.shape == (5,)
    assert module.all_weights[3][4] is module.w_i_l1_reverse
    cell = Cell(
        peephole, "i f g o", "h c", "w_i w_f w_o", init={"w_f": 1.5, "w_o": torch.nn.init.zeros_}
    )
    module = Recurrent(cell, 3, 5)
    assert (module.w_f_l0 == 1.5).all() and (module.w_o_l0 == 0).all() and module.w_i_l0.any()
    assert repr(module) == "Recurrent(peephole, 3, 5)"


@pytest.mark.filterwarnings("ignore")  # of numbers that become constants
def test_jit_trace():
    """A recording is the definition, unrolled."""
    example = Example("peephole", 4, 2, 3, 5, torch.float32)
    traced = torch.jit.trace(example.module, (example.x,))
    other = torch.randn_like(example.x)
    torch.testing.assert_close(traced(other)[0], example.module(other)[0])


@needs_kernels
def test_no_compiler_is_needed():
    """A cell is traced, runs and trains where no program can be found."""
    program = """
import shutil, torch, fastrnn
assert not any(map(shutil.which, ("cc", "gcc", "g++", "clang++", "ninja", "nvcc")))
layer = fastrnn.Recurrent(fastrnn.zoo.LayerNormLSTM, 4, 8, bias=False)
with fastrnn.backend("cpu"):
    layer(torch.randn(5, 2, 4))[0].sum().backward()
print(layer.w_c_l0.grad.abs().sum().item() > 0)
"""
    env = {"PATH": "/nowhere", "PYTHONPATH": str(ROOT), "HOME": "/nowhere"}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert run.stdout == "True\n", run.stderr


@needs_kernels
def test_operations_are_those_of_the_kernels():
    from fastrnn._C import program_ops, register_program
    from fastrnn.programs.bytecode import OPS

    assert program_ops() == list(OPS)
    program = CELLS["peephole"].program(4)
    wrong = program._replace(name="cell_wrong", forward=program.forward._replace(planes=3))
    with pytest.raises(ValueError, match="wrong number of planes"):
        register_program(**wrong._asdict())
    beyond = program.forward._replace(instructions=program.forward.instructions[:10] + b"\xff\x7f")
    with pytest.raises(ValueError, match="no such plane"):
        register_program(**program._replace(forward=beyond)._asdict())


def test_refused():
    with pytest.raises(TypeError, match="cell should be a fastrnn.Cell, got function"):
        Recurrent(peephole, 3, 4)
    with pytest.raises(ValueError, match="hidden_size must be a positive integer, got 0"):
        Recurrent(CELLS["lstm"], 3, 0)
    many = [f"w{k}" for k in range(17)]
    cell = Cell(lambda g, s, p: g.a * sum(getattr(p, w) for w in many), "a", params=many[1:])
    with pytest.raises(AttributeError, match="no parameter or input is named 'w0'"):
        Recurrent(cell, 3, 4)
    cell = Cell(cell.step, "a", params=many[1:], inputs="w0", name="many")
    with pytest.raises(ValueError, match="many has 17 params and inputs, the kernels take 16"):
        Recurrent(cell, 3, 4)
    with pytest.raises(ValueError, match="no gate sees the input"):
        Recurrent(Cell(lambda g, s, p: torch.tanh(g.u_a), "u:a"), 3, 4)
    with pytest.warns(UserWarning, match="dropout is applied between layers"):
        Recurrent(CELLS["lstm"], 3, 4, dropout=0.5)
    module = Recurrent(CELLS["cfc"], 3, 4)
    x = torch.randn(5, 2, 3)
    for inputs, text in (
        (None, r"cfc needs inputs=\{'dt'\}, got none"),
        ({"dx": x}, r"cfc needs inputs=\{'dt'\}, got 'dx'"),
        ({"dt": "1"}, "input dt: expected a tensor, got str"),
        ({"dt": torch.ones(5, 3, 1)}, r"input dt must broadcast to \(5, 2, 4\), got \(5, 3, 1\)"),
        ({"dt": torch.ones(3)}, r"input dt must broadcast"),
    ):
        with pytest.raises(ValueError, match=text):
            module(x, inputs=inputs)
    lstm = Recurrent(CELLS["lstm"], 3, 4)
    for hx, text in (
        (torch.zeros(1, 2, 4), "lstm expects a tuple of the states h, c"),
        ((torch.zeros(1, 2, 4),), "lstm expects a tuple of the states h, c"),
        ((torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)), "Expected state c size"),
        ((torch.zeros(1, 2, 4), torch.zeros(2, 4)), "state c should be 3-D, got 2-D"),
    ):
        with pytest.raises(RuntimeError, match=text):
            lstm(x, hx)
    with pytest.raises(ValueError, match="need padded input, got packed"):
        lstm(pack_padded_sequence(x, [5, 3]), detach_every=2)
    assert lstm(x)[0].shape == (5, 2, 4)


def test_a_cell_does_not_depend_on_another_with_the_same_step():
    """Whose function cannot run any more, as in a notebook whose variables were reset."""
    source = "def step(g, s, p):\n    return torch.tanh(g.z + 0.375 * s.h)"
    modules = []
    for _ in range(2):
        namespace = {"torch": torch}
        exec(source, namespace)
        cell = fastrnn.Cell(namespace["step"], gates="z", states="h")
        modules.append(fastrnn.Recurrent(cell, 4, 3, dtype=torch.float64))
        if len(modules) == 1:
            namespace.clear()
    assert modules[0].mode == modules[1].mode
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    with fastrnn.backend("reference"):
        wanted = modules[1](x)[0]
    torch.testing.assert_close(modules[1](x)[0], wanted)
