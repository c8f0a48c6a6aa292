"""How long can it remember? A vanilla RNN, an LSTM and a GRU, and where the gradient goes.

At the first of T steps the network sees one of two symbols, and noise at every step. After the last
step it has to name the symbol: one bit, kept for T - 1 steps. This is a form of the latch problem
of Bengio, Simard & Frasconi 1994, which is artificial by design.

The picture shows the accuracy after the same short training for several T. It also shows, before
training, the gradient of the loss with respect to the input of every step. In the RNN this gradient
vanishes on the way back, so the network learns nothing about the first step. Gates that start out
open carry the gradient through. Their biases are those of Tallec & Ollivier 2018, "Can recurrent
neural networks warp time?", for memories of up to T steps.

    pip install -e '.[examples]'
    python examples/memory.py --backend both
"""

from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from common import Run, fit, libraries, parse, picture, report, save

CELLS = ("RNN", "LSTM", "GRU")
SYMBOLS, NOISES = 2, 4
LENGTHS = (10, 20, 40, 80, 160)
HIDDEN, BATCH, RATE = 48, 32, 5e-3


class Memory(nn.Module):
    """(T, N, SYMBOLS + NOISES) -> (N, SYMBOLS) scores. `library` is torch.nn or fastrnn."""

    def __init__(self, library, cell: str, length: int):
        super().__init__()
        self.rnn = getattr(library, cell)(SYMBOLS + NOISES, HIDDEN)
        self.scores = nn.Linear(HIDDEN, SYMBOLS)
        if cell != "RNN":
            open_gates(self.rnn, length)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.scores(output[-1])


@torch.no_grad()
def open_gates(rnn: nn.Module, length: int) -> None:
    """Biases that make unit k forget at a rate of 1 / m_k, with m_k uniform in [1, length - 1]."""
    keep = torch.empty(HIDDEN).uniform_(1, length - 1).log()
    rnn.bias_ih_l0[HIDDEN : 2 * HIDDEN] = keep  # the forget gate, or the update gate of a GRU
    rnn.bias_hh_l0[HIDDEN : 2 * HIDDEN] = 0
    if rnn.mode == "LSTM":
        rnn.bias_ih_l0[:HIDDEN] = -keep  # the input gate
        rnn.bias_hh_l0[:HIDDEN] = 0


def sequences(length: int, count: int) -> tuple[Tensor, Tensor]:
    """x (length, count, SYMBOLS + NOISES) and the symbols (count,)."""
    symbols = torch.randint(SYMBOLS, (count,))
    x = torch.randn(length, count, SYMBOLS + NOISES)
    x[..., :SYMBOLS] = 0
    x[0, :, :SYMBOLS] = one_hot(symbols, SYMBOLS)
    return x, symbols


def gradient(model: Memory, length: int) -> Tensor:
    """(length,) norm of d loss / d x_t, relative to that of the last step."""
    x, symbols = sequences(length, 256)
    x.requires_grad_()
    cross_entropy(model(x), symbols).backward()
    norm = x.grad.flatten(1).norm(dim=1)
    return norm / norm[-1]


def train(library, label: str, lengths, options) -> tuple[Run, dict, dict]:
    """The run, and by cell the accuracies, one a length, and the gradient over time."""
    runs, metrics, accuracies, gradients = [], {}, {}, {}
    for cell in CELLS:
        accuracies[cell] = []
        for length in lengths:
            torch.manual_seed(options.seed)
            model = Memory(library, cell, length)
            if length == lengths[-1]:
                gradients[cell] = gradient(model, length)
            batches = [sequences(length, BATCH) for _ in range(options.steps)]
            runs.append(
                fit(
                    model,
                    batches,
                    lambda x, symbols, model=model: cross_entropy(model(x), symbols),
                    RATE,
                    f"{label} {cell} {length}",
                    samples=lambda x, _: x.size(1),
                )
            )
            x, symbols = sequences(length, 512)
            with torch.no_grad():
                right = (model(x).argmax(-1) == symbols).double().mean().item()
            metrics[f"{cell}, {length} steps: accuracy %"] = right
            accuracies[cell].append(right)
    losses = [fmean(step) for step in zip(*(run.losses for run in runs), strict=True)]
    seconds = sum(1 / run.speed for run in runs)  # for one sample of each
    return Run(losses, len(runs) / seconds, metrics), accuracies, gradients


def draw(lengths, accuracies: dict, gradients: dict, options) -> None:
    figure, (left, right) = picture(1, 2, (9, 3.4))
    for cell, style in zip(CELLS, ("o-", "s-", "^--"), strict=True):
        left.plot(lengths, accuracies[cell], style, label=cell, alpha=0.7)
        steps = torch.arange(1, len(gradients[cell]) + 1)
        right.semilogy(steps, gradients[cell], label=cell)
    left.axhline(1 / SYMBOLS, color="grey", lw=0.8, ls=":")
    left.text(lengths[0], 1 / SYMBOLS - 0.09, "guessing", color="grey")
    left.set(xscale="log", xticks=lengths, xticklabels=lengths, ylim=(0, 1.05))
    left.minorticks_off()
    left.set(xlabel="length of the sequence", ylabel=f"accuracy after {options.steps} steps")
    left.set_title("The symbol of the first step, named after the last", loc="left")
    right.set(
        ylim=(1e-15, 3), xlabel="time step", ylabel="|d loss / d input|, the last step's is 1"
    )
    right.set_title("The gradient on its way back, before training", loc="left")
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.75))
    save(figure, "memory", options)


def main() -> None:
    options = parse(__doc__, steps=200)
    lengths = LENGTHS
    if options.smoke:
        options.steps, lengths = 60, (5, 10)
    runs = {}
    for name, library in libraries(options).items():
        runs[name], accuracies, gradients = train(library, name, lengths, options)
    guessing = dict.fromkeys(runs[name].metrics, 1 / SYMBOLS)
    report(runs, guessing, options)
    draw(lengths, accuracies, gradients, options)


if __name__ == "__main__":
    main()
