"""Names private to torch: all in one module, and none of them needed for a right result."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import torch

import fastrnn
from fastrnn import torch_private

PACKAGE = Path(fastrnn.__file__).parent
NAMES = [
    "torch._C._is_any_autocast_enabled",
    "torch._C._are_functorch_transforms_active",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._is_tracing",
    "torch._C._FunctionBase",
    "torch._C._functorch",
    "torch._C._dispatch_tls_is_dispatch_key_included",
    "torch._C._dispatch_key_parse",
    "torch._C._SetExcludeDispatchKeyGuard",
    "torch.autograd.forward_ad._current_level",
    "torch.autograd.profiler._is_profiler_enabled",
    "torch._is_functional_tensor",
    "torch._C._will_engine_execute_node",
    "torch._C._get_fp32_precision_getter",
]


def private(name: str) -> bool:
    return any(
        part.startswith("_") and not part.startswith("__") and part != "_C"
        for part in name.split(".")
    )


def torchs_private_names(path: Path) -> list[str]:
    """Private names in a file that are imported from torch or read of what was."""
    tree, found = ast.parse(path.read_text()), []
    of_torch = {}  # what stands for a module of torch
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "torch":
                    of_torch[each.asname or "torch"] = each.name if each.asname else "torch"
                    found += [each.name] * private(each.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for each in node.names if node.level == 0 else ():
                name = f"{node.module}.{each.name}"
                found += [name] * private(name)
                if not each.name[0].isupper():
                    of_torch[each.asname or each.name] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain, base = node.attr, node.value
            while isinstance(base, ast.Attribute):
                chain, base = f"{base.attr}.{chain}", base.value
            if isinstance(base, ast.Name) and base.id in of_torch:
                name = f"{of_torch[base.id]}.{chain}"
                found += [name] * (private(name) or "._C." in name)
    return found


def test_they_stand_in_one_module():
    found = {path.name: torchs_private_names(path) for path in PACKAGE.rglob("*.py")}
    assert found.pop("torch_private.py")
    assert not {name: names for name, names in found.items() if names}
    text = (PACKAGE / "torch_private.py").read_text()
    assert all(name.rsplit(".", 1)[1] in text for name in NAMES)
    quoted = {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    quoted = {word for word in quoted if word.isidentifier() and word.startswith("_")}
    assert quoted == {name.rsplit(".", 1)[1] for name in NAMES}


def test_a_layer_takes_a_functional_tensor():
    """Whose results have no memory of their own to let go of."""
    gru, x = fastrnn.GRU(5, 7), torch.randn(6, 3, 5)
    wanted, wrapped = gru(x)[0], torch._to_functional_tensor(x)
    torch._enable_functionalization(reapply_views=True)
    try:
        output = gru(wrapped)[0]
    finally:
        torch._disable_functionalization()
    assert torch.allclose(torch._from_functional_tensor(output), wanted, atol=1e-6)


def test_this_torch_has_them():
    assert not torch_private.missing


COMPARE = """
import copy, importlib, os, sys, traceback
import torch
from torch import nn


def compare(name):
    missing = [] if name is None else [name]
    if name is not None:
        owner, attribute = name.rsplit(".", 1)
        owner = importlib.import_module(owner)
        kept = getattr(owner, attribute)
        delattr(owner, attribute)
    import fastrnn
    from fastrnn.call import Call
    from fastrnn.dispatch import reference
    from fastrnn.results import Cotangents, Needs, Saved
    from fastrnn.table import weight_names
    if name is not None and owner is torch._C:  # torch itself needs them
        setattr(owner, attribute, kept)

    assert fastrnn.torch_private.missing == missing
    from fastrnn.__main__ import diagnosis, text_of
    assert ("this torch lacks" in text_of(diagnosis.facts())) == bool(missing)
    x, x2 = torch.randn(5, 2, 4), torch.randn(2, 4)
    for kind in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"):
        ours, theirs = getattr(fastrnn, kind)(4, 3), getattr(nn, kind)(4, 3)
        ours.load_state_dict(theirs.state_dict())
        given = x2 if "Cell" in kind else x

        def results(module, input):
            found = module(input)
            return fastrnn.trees.tensors(found) if isinstance(found, tuple) else (found,)

        def same(a, b):
            torch.testing.assert_close(list(a), list(b), rtol=1e-5, atol=1e-5)

        for backend in ("auto", "reference"):
            with fastrnn.backend(backend):
                a, b = given.clone().requires_grad_(), given.clone().requires_grad_()
                sums = [sum(r.sum() for r in results(m, i)) for m, i in ((ours, a), (theirs, b))]
                grads = [torch.autograd.grad(s, [i, *m.parameters()])
                         for s, i, m in zip(sums, (a, b), (ours, theirs))]
                same(*grads)
                with torch.no_grad():
                    same(results(ours, given), results(theirs, given))
                    with torch.profiler.profile():
                        same(results(ours, given), results(theirs, given))
                # torch's own LSTM needs AVX-512 for it
                can = kind != "LSTM" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
                with torch.autocast("cpu", torch.bfloat16, enabled=can):
                    found = list(results(ours, given)), list(results(theirs, given))
                for r, e in zip(*found):
                    assert r.dtype == e.dtype
                    torch.testing.assert_close(r, e, rtol=4e-2, atol=4e-2)
                batch = torch.stack([given, 2 * given])
                mapped = torch.vmap(lambda i: next(iter(results(ours, i))))(batch)
                same([mapped[1]], [next(iter(results(theirs, batch[1])))])
                y = next(iter(results(ours, a)))
                batch = torch.stack([torch.ones_like(y), torch.zeros_like(y)])
                found, = torch.autograd.grad(y, a, batch, True, is_grads_batched=True)
                same([found[0]], torch.autograd.grad(y, a, batch[0]))
                if "forward_ad" not in str(name):
                    wide = copy.deepcopy(ours).double()
                    jvp, numeric = (
                        torch.func.jvp(lambda i: next(iter(results(m, i))), (t,), (t,))[1]
                        for m, t in ((ours, given), (wide, given.double()))
                    )
                    torch.testing.assert_close(jvp.double(), numeric, rtol=1e-4, atol=1e-4)

    # inside what passes over autograd, the implementation of an op as in a compiled graph
    ops, w = torch.ops.fastrnn, list(fastrnn.GRU(4, 3).parameters())
    h = torch.zeros(1, 2, 3)
    call = Call(x, None, h, None, [p.detach() for p in w], "gru", weight_names(True, False))
    y, h_n, c_n, *saved = reference.run_detached(call, True)
    arguments = (
        call, Cotangents(torch.ones_like(y), None, None, None), Saved(y, *saved),
        Needs(True, True, True),
    )
    wanted = reference.run_backward(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        found = reference.run_backward(*arguments)
    same([*found[:2], *found[3]], [*wanted[:2], *wanted[3]])
for name in eval(sys.argv[1]):  # of a process each: an import happens once
    if (child := os.fork()) == 0:
        try:
            compare(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"without {name}: {status}")
"""


def test_without_one_of_them():
    """The package is imported, and every module and every gradient is right."""
    arguments = [sys.executable, "-c", COMPARE, repr([None, *NAMES])]
    child = subprocess.run(arguments, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
