"""What the examples share: command line, training loop, comparison of the two libraries, pictures.

An example trains one model with `torch.nn` and with `fastrnn`, from the same seed. `Run` holds the
figures of one training. `report` prints the runs side by side, and checks them in `--smoke` mode.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fastrnn

LIBRARIES = {"torch": nn, "fastrnn": fastrnn}
console = Console(highlight=False, width=100)


@dataclass
class Run:
    """One library's training: `losses`, one a step; `speed` in samples a second; `metrics` by name,
    of which those that end in % are shares."""

    losses: list[float] = field(default_factory=list)
    speed: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


def parse(doc: str, arguments: list[str] | None = None, **defaults: int) -> argparse.Namespace:
    """The options of an example; each of `defaults` becomes an integer option of its own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--backend", choices=[*LIBRARIES, "both"], default="both")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="PyTorch's own choice if not given")
    add("--out", type=Path, default=Path(), metavar="FOLDER", help="for the picture; here")
    add("--smoke", action="store_true", help="a small part of it, in float64, that checks itself")
    for name, default in defaults.items():
        add(f"--{name}", type=int, default=default, help=f"{default} if not given")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64 if options.smoke else torch.float32)
    return options


def libraries(options: argparse.Namespace) -> dict:
    """Name -> library, of those asked for."""
    names = LIBRARIES if options.backend == "both" else [options.backend]
    return {name: LIBRARIES[name] for name in names}


def fit(
    model: nn.Module,
    batches: Iterable[tuple],
    loss: Callable[..., Tensor],
    rate: float,
    label: str,
    samples: Callable[..., int] = lambda x, *_: len(x),
) -> Run:
    """Trains with Adam, one step a batch: `loss(*batch)`, with the rate rising to `rate` and back
    to zero (one cycle, Smith 2018) and the gradient's norm clipped at 1."""
    batches = list(batches)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    run, seen, quiet = Run(), 0, not console.is_terminal
    start = time.perf_counter()
    for batch in track(batches, description=f"{label:8}", transient=True, disable=quiet):
        value = loss(*batch)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        run.losses.append(value.item())
        seen += samples(*batch)
    run.speed = seen / (time.perf_counter() - start)
    return run


def ends(losses: list[float]) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    return fmean(losses[:tenth]), fmean(losses[-tenth:])


def _show(name: str, value: float) -> str:
    if name.endswith("%"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def report(
    runs: dict[str, Run],
    baseline: dict[str, float],
    options: argparse.Namespace,
    loss: str = "loss",
    tolerance: float = 1e-6,
    rival: str = "torch.nn",
) -> None:
    """Prints one column a run, and one of the `baseline`'s metrics beside them.

    Args:
        loss: what `Run.losses` are.
        tolerance: how far the losses of two runs may part in smoke mode, relatively.
        rival: what fastrnn is compared with.

    Raises:
        SystemExit: in smoke mode, a loss did not fall or the two libraries part.
    """
    table = Table("", *runs, *(["baseline"] if baseline else []), box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, values: list[float]) -> None:
        beside = [_show(name, baseline[name])] if name in baseline else []
        table.add_row(name, *(_show(name, value) for value in values), *beside)

    row(f"{loss} at first", [ends(run.losses)[0] for run in runs.values()])
    row(f"{loss} at last", [ends(run.losses)[1] for run in runs.values()])
    for name in next(iter(runs.values())).metrics:
        row(name, [run.metrics[name] for run in runs.values()])
    row("samples/s in training", [run.speed for run in runs.values()])
    console.print(table)
    gap = None
    if len(runs) == 2:
        ours, torchs = runs["fastrnn"], runs["torch"]
        pairs = list(zip(ours.losses, torchs.losses, strict=True))
        gap = max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)
        console.print(f"fastrnn trains {ours.speed / torchs.speed:.2f} times as fast as {rival}")
    if options.smoke:
        check(runs, gap, tolerance)


def check(runs: dict[str, Run], gap: float | None, tolerance: float) -> None:
    for name, run in runs.items():
        first, last = ends(run.losses)
        if not last < 0.95 * first:
            raise SystemExit(f"{name}: the loss did not fall, {first:.4f} -> {last:.4f}")
    if gap is not None:
        if not gap < tolerance:
            raise SystemExit(f"the loss curves of the two libraries part: {gap:.1e}")
        console.print(f"smoke: the loss falls, the two curves are {gap:.0e} apart")


def over_lengths(rnn: nn.Module, x: Tensor, lengths: Tensor):
    """rnn(x) of padded x (N, T, I) as if each row ended at its length (N,): zeros after it, the
    final state and the reverse direction those of the row's own end. `torch.nn` has to pack."""
    if isinstance(rnn, fastrnn.RNNBase):
        return rnn(x, lengths=lengths)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, state = rnn(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=x.size(1))
    return padded.transpose(0, 1), state  # in memory as (T, N), which decides on dropout's masks


def stepper(rnn: nn.Module, batch: int = 1):
    """A function of one time step, (batch, I) -> (batch, H), that keeps the state. `rnn` has
    batch_first. The result holds until the next call."""
    if isinstance(rnn, fastrnn.RNNBase):
        return fastrnn.Streamer(rnn, batch)
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        output, state = rnn(x.unsqueeze(1), state)
        return output[:, 0]

    return step


def picture(rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 4)):
    """A matplotlib figure and its axes; needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return plt.subplots(rows, columns, figsize=size, layout="constrained")


def save(figure, name: str, options: argparse.Namespace) -> None:
    path = options.out / f"{name}.png"
    figure.savefig(path, dpi=100)
    console.print(f"picture: {path}")
