"""Annotations: a user's script under `mypy --strict`, and the return types of what is public."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys

import pytest
from project import ROOT

import fastrnn

SCRIPT = """
import torch
import fastrnn
from fastrnn import functional

lstm = fastrnn.LSTM(4, 3, num_layers=2, batch_first=True, device="cpu", dtype=torch.float32)
gru: fastrnn.GRU = fastrnn.GRU(4, 3, bidirectional=False)
rnn = fastrnn.RNN(4, 3, nonlinearity="relu")
output, (h, c) = lstm(torch.zeros(2, 5, 4))
output, (h, c), states = lstm.forward(torch.zeros(2, 5, 4), (h, c), return_states=True)
y, hx = gru.step(torch.zeros(2, 4))
frame: torch.Tensor = y
again, hx = gru.step(torch.zeros(2, 4), hx, reset=torch.zeros(2, dtype=torch.bool))
every: fastrnn.States = rnn(torch.zeros(5, 2, 4), return_states=True)[2]
layers: tuple[torch.Tensor, ...] = every.h

cell = fastrnn.LSTMCell(4, 3)
pair: tuple[torch.Tensor, torch.Tensor] = cell.forward(torch.zeros(2, 4))
one: torch.Tensor = fastrnn.GRUCell(4, 3).forward(torch.zeros(2, 4))

stream = fastrnn.Streamer(gru, batch_size=2)
frame = stream(torch.zeros(2, 4))
frame = stream.step(torch.zeros(2, 4))
stream.reset([0])
stream.load_state(stream.state)
small = fastrnn.Streamer(gru, 2, weights={"weight_ih_l0": None, "*": "int8"}, activations="int8")
cost: float = fastrnn.quantization_error(gru, torch.zeros(3, 2, 4), weights="int8").weights[0].error

model: torch.nn.Sequential = fastrnn.convert(torch.nn.Sequential(torch.nn.GRU(4, 3)))
model = fastrnn.to_torch(model)


@fastrnn.backend("reference")
def whole(x: torch.Tensor) -> torch.Tensor:
    return functional.gru(x, torch.zeros(1, 2, 3), list(gru.parameters()))[0]


number: torch.Tensor = whole(torch.zeros(5, 2, 4))
with fastrnn.backend("auto"), fastrnn.patch():
    known: dict[str, str] = fastrnn.backends()
fastrnn.set_backend("auto")
bytes_: int = fastrnn.release_memory()
"""

MISTAKES = (
    "fastrnn.Streamer(gru, batch_size='2')",
    "fastrnn.Streamer(gru, weights=8)",
    "gru.step(3)",
    "bytes_ = fastrnn.backends()",
    "fastrnn.GRU(4, 3, dtype='float32')",
    "fastrnn.LSTM('4', 3)",
)

mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="needs mypy, of the extra `test`"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of scripts, and of what mypy remembers of torch."""
    return tmp_path_factory.mktemp("mypy")


def checked(script: str, folder) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(folder)]
    command = [sys.executable, "-m", "mypy", *options, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@mypy
def test_a_users_script(folder):
    run = checked(SCRIPT, folder)
    assert run.returncode == 0, run.stdout + run.stderr
    exec(compile(SCRIPT, "script", "exec"), {"__name__": "script"})


@mypy
def test_mistakes_are_found(folder):
    first = SCRIPT.count("\n") + 1
    run = checked(SCRIPT + "\n".join(MISTAKES) + "\n", folder)
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error: " in line}
    assert found == set(range(first, first + len(MISTAKES))), run.stdout + run.stderr


def test_public_methods_say_what_they_return():
    classes = [each for each in vars(fastrnn).values() if inspect.isclass(each)]
    functions = [each for each in vars(fastrnn).values() if inspect.isfunction(each)]
    functions += [
        function
        for each in classes
        for name, function in vars(each).items()
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__")
    ]
    assert len(functions) > 20
    for function in functions:
        assert "return" in function.__annotations__, function.__qualname__
