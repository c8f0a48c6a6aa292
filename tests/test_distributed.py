"""Two processes under torchrun: the gradients of one process on the joined batch.

The file is also the program that torchrun starts: `worker`, or the example with the options given.
It fails where an assertion does.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from conftest import assert_matches
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch_pairs import assert_same_results

import fastrnn
from examples import distributed

ROOT = Path(__file__).parent.parent
T, N, I, H = 4, 6, 5, 7  # 7 * gates is odd for RNN and GRU: shards of different sizes


class Model(nn.Module):
    """A layer and a cell of ours, the way from (T, N, I) to one number a row."""

    def __init__(self, name: str, library=fastrnn):
        super().__init__()
        self.rnn = getattr(library, name)(I, H, 2, bidirectional=True)
        self.cell = library.GRUCell(2 * H, H)

    def forward(self, x):
        return self.cell(self.rnn(x)[0][-1])


def gradients(model: nn.Module, x) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def worker() -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    assert processes == 2
    mesh = dist.init_device_mesh("cpu", (processes,))
    for name in ("LSTM", "GRU", "RNN"):
        torch.manual_seed(0)
        model, x = Model(name), torch.randn(T, N, I)
        own = x[:, rank * N // processes : (rank + 1) * N // processes]
        wanted = gradients(model, x)

        replica = DistributedDataParallel(copy.deepcopy(model))
        for _ in range(2):  # the first step builds DDP's buckets, the second uses them
            for parameter, gradient in gradients(replica, own).items():
                assert_matches(gradient, wanted[parameter], f"DDP, {name}, {parameter}")

        sharded = copy.deepcopy(model)
        fully_shard(sharded.rnn, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        for _ in range(2):
            for parameter, gradient in gradients(sharded, own).items():
                assert_matches(gradient.full_tensor(), wanted[parameter], f"FSDP2, {parameter}")
        state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
        theirs = Model(name, nn)
        theirs.load_state_dict(state)
        assert_same_results(theirs(x), model(x))
    dist.destroy_process_group()


def torchrun(*arguments: str | Path) -> str:
    """The output of this file as a program that two processes must run without an error."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [*command, __file__, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_gradients_of_two_processes():
    torchrun()


@pytest.mark.parametrize("shard", [False, True])
def test_the_example(shard, tmp_path):
    """Two processes take the steps of one, and save what plain torch.nn loads."""
    saved = tmp_path / "adder.pt"
    options = ["--steps", "10", "--save", str(saved)]
    alone = distributed.main(options)
    one = torch.load(saved)
    together = torchrun(*options, *["--shard"] * shard)
    assert f"2 processes: loss {alone[0]:.4f} -> {alone[-1]:.4f}" in together
    two = torch.load(saved)
    assert list(one) == list(two)
    for name, parameter in two.items():
        torch.testing.assert_close(parameter, one[name], rtol=1e-3, atol=1e-4)
    distributed.Adder(nn).load_state_dict(two)


def test_the_example_learns():
    torch.manual_seed(0)
    losses = distributed.train(distributed.Adder(), 250)
    assert sum(losses[-10:]) / 10 < 0.02 < losses[0]  # 0.17 by always guessing the mean


def test_accelerate():
    """The launcher's library takes the model as it takes any other, and the same steps follow."""
    runs = []
    for prepare in (lambda *things: things, Accelerator(cpu=True).prepare):
        torch.manual_seed(0)
        model = Model("LSTM")
        model, optimizer = prepare(model, torch.optim.Adam(model.parameters(), 0.01))
        for _ in range(3):
            loss = model(torch.randn(T, N, I)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        runs.append(loss)
    assert torch.equal(*runs)


if __name__ == "__main__":
    distributed.main(sys.argv[1:]) if sys.argv[1:] else worker()
    sys.stdout.flush()
    # An interpreter that shuts down while a thread of Gloo still lets go of its last tensor is
    # aborted now and then, after all is done: https://github.com/pytorch/pytorch/issues/190489.
    os._exit(0)
