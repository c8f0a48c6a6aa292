"""`python -m fastrnn`: the checks, the verdict, and the same facts as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import KERNELS

import fastrnn
from fastrnn import __main__, diagnosis, dispatch
from fastrnn.dispatch import cpu, cudnn, gpu, reference

CPU = "cpu" if KERNELS else "PyTorch's own kernels"


def command(*arguments: str, hide: bool = False) -> tuple[int, str]:
    start = (
        "import sys, runpy; sys.modules['fastrnn._C'] = None; " if hide else "import sys, runpy; "
    )
    code = (
        f"{start}sys.argv[1:] = {list(arguments)}; runpy.run_module('fastrnn', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.returncode, run.stdout


def test_every_usable_backend_is_right():
    facts = diagnosis.facts()
    usable = [name for name, state in fastrnn.backends().items() if state == "usable"]
    assert facts["checks"] == dict.fromkeys(usable, "right")
    assert "reference" in usable and facts["ok"]
    assert facts["verdict"].startswith(f"OK: tensors on the CPU run on {CPU}")


@pytest.mark.skipif(KERNELS is None, reason="no kernels are built")
def test_the_products_of_float32(monkeypatch):
    code = "import fastrnn._C, fastrnn; print(fastrnn._C.in_parts())"
    unasked = "never" if "amx" in KERNELS.cpu_features() else "where faster"
    for value, found in (("1", "where faster"), ("0", unasked), (None, unasked)):
        if value is None:
            monkeypatch.delenv("FASTRNN_AMX_FLOAT32", raising=False)
        else:
            monkeypatch.setenv("FASTRNN_AMX_FLOAT32", value)
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == found
    with pytest.raises(ValueError, match="'sometimes' is none of 'never', 'where faster'"):
        KERNELS.set_in_parts("sometimes")
    assert ("float32" in diagnosis.facts()) == KERNELS.has_parts()


@pytest.mark.parametrize("hide", [False, True])
def test_command(hide):
    status, text = command(hide=hide)
    *lines, verdict = text.splitlines()
    assert status == 0
    assert f"fastrnn       {fastrnn.__version__}" in lines
    assert any(line.startswith("checks") and line.endswith("right") for line in lines)
    assert verdict.startswith("OK: tensors on the CPU run on ")
    assert ("PyTorch's own kernels" in verdict) == (hide or not KERNELS)
    status, text = command("--json", hide=hide)
    facts = json.loads(text)
    assert status == 0 and facts["ok"] and facts["verdict"] == verdict
    assert facts["torch"] == torch.__version__
    assert facts["backends"].keys() == fastrnn.backends().keys()
    for label in facts.keys() - {"ok", "verdict", "slower"}:
        assert any(line.startswith(label) for line in lines), label


@pytest.mark.parametrize("arguments", [[], ["report"], ["selftest"], ["selftest", "--json"]])
def test_a_device_goes_with_tune_alone(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main([*arguments, "--device", "cuda"])
    assert end.value.code == 2
    assert "--device goes with tune alone" in capsys.readouterr().err


def broken(run):
    """`run` of a backend whose numbers are a little off, for a GRU only."""

    def wrong(call, save):
        results = run(call, save)
        return results._replace(output=results.output + 0.01) if call.cell == "gru" else results

    return wrong


@pytest.mark.parametrize("name", ["cpu", "cudnn", "reference"])
def test_a_broken_backend_is_reported(name, monkeypatch, capsys):
    module = dispatch.BACKENDS[name]
    if module.status():
        pytest.skip(f"{name}: {module.status()}")
    monkeypatch.setattr(module, "run", broken(module.run))
    if module is cudnn:
        monkeypatch.setattr(cudnn, "takes_whole", lambda stack: False)
    assert __main__.main([]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith(f"NOT OK: backend '{name}' is wrong, GRU: ")
    assert "Build fastrnn again" in verdict
    assert __main__.main(["--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    monkeypatch.undo()
    assert __main__.main([]) == 0


def test_a_backend_that_raises_is_reported(monkeypatch, capsys):
    def run(call, save):
        raise RuntimeError("illegal\ninstruction")

    monkeypatch.setattr(reference, "run", run)
    assert __main__.main([]) == 1
    assert "LSTM: illegal instruction" in capsys.readouterr().out.splitlines()[-1]


def test_an_extension_that_does_not_load_is_wrong(monkeypatch, capsys):
    reason = "fastrnn._C is there but does not load (undefined symbol). Build it again."
    monkeypatch.setattr(cpu, "not_built", reason)
    assert __main__.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"NOT OK: {reason}")


def test_a_gpu_is_checked_where_there_is_one(monkeypatch):
    """Here by the CPU's tensors: the device is asked for, not assumed."""
    device = torch.device("cpu")
    monkeypatch.setattr(cudnn, "status", lambda: None)
    monkeypatch.setattr(cpu, "not_built", None)
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: not tensor.is_meta)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    assert diagnosis.check("cudnn") is None
    monkeypatch.setattr(cudnn, "run_stack", lambda stack: 1 / 0)
    assert diagnosis.check("cudnn") == "LSTM: division by zero"
