"""One model on several processes, with nothing but PyTorch's own launcher:

    python examples/distributed.py                                     # one process
    torchrun --nproc-per-node 2 examples/distributed.py                # DDP: a replica in each
    torchrun --nproc-per-node 2 examples/distributed.py --shard        # FSDP2: a part in each
    torchrun --nnodes 4 --nproc-per-node 8 ... examples/distributed.py --shard --save lstm.pt

The task is to add the two marked numbers of a sequence (Hochreiter & Schmidhuber 1997). The global
batches are the same for any number of processes, and so are the steps of training. `--save` writes
a checkpoint that loads into `torch.nn.LSTM` on a single machine.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastrnn

LENGTH, BATCH, HIDDEN = 10, 64, 32


class Adder(nn.Module):
    """(T, N, 2), numbers and marks -> (N, 1), the sum of the marked numbers."""

    def __init__(self, library=fastrnn):
        super().__init__()
        self.rnn = library.LSTM(2, HIDDEN, num_layers=2)
        self.sum = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.rnn(x)[0][-1])


def batch(step: int, rank: int, processes: int) -> tuple[Tensor, Tensor]:
    """This process's columns of global batch number `step`: x (T, n, 2) and y (n, 1)."""
    generator = torch.Generator().manual_seed(step)
    numbers = torch.rand(LENGTH, BATCH, generator=generator)
    marked = torch.rand(LENGTH, BATCH, generator=generator).argsort(0) < 2
    x = torch.stack([numbers, marked.float()], -1)
    y = (numbers * marked).sum(0).unsqueeze(-1)
    own = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    return x[:, own], y[own]


def distribute(model: Adder, shard: bool) -> nn.Module:
    """The model as DDP or FSDP2 wraps it, in a process group; by itself without one."""
    if not dist.is_initialized():
        return model
    if not shard:
        return DistributedDataParallel(model)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: nn.Module, steps: int, rank: int = 0, processes: int = 1) -> list[float]:
    """Takes `steps` steps; the loss of each, over the global batch."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for step in range(steps):
        x, y = batch(step, rank, processes)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        losses.append(total.item() / processes)
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--save", help="file for the checkpoint")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if BATCH % processes:
        parser.error(f"the batch of {BATCH} cannot be shared by {processes} processes")
    if "RANK" in os.environ:  # set by torchrun
        dist.init_process_group("gloo")
    try:
        model = distribute(Adder(), options.shard)
        losses = train(model, options.steps, rank, processes)
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=whole)  # every process takes part in it
        if rank == 0:
            print(f"{processes} processes: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
            if options.save:
                torch.save(state, options.save)
        if dist.is_initialized():
            dist.barrier()  # nobody ends before the checkpoint is complete
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
