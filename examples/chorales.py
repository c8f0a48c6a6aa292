"""Four-part chorales in the manner of Bach: an LSTM that reads and writes them note by note.

The corpus has some 330 chorales in four voices (see scores.py). Every tenth one is held out. The
LSTM learns to predict the next symbol. Its rival is an n-gram model of the last eight symbols,
interpolated after Witten & Bell 1991. The LSTM then writes a chorale of its own, one symbol at a
time, and saves it as MIDI. With fastrnn this goes through `Streamer`.

    pip install -e '.[examples]'
    python examples/chorales.py --backend both
"""

import math
import time
from collections import Counter, defaultdict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import Run, console, fit, libraries, parse, picture, report, save, stepper
from scores import BAR, REST, SYMBOLS, load, notes, write_midi

VOICES = ("soprano", "alto", "tenor", "bass")
BEGIN = SYMBOLS
WIDTH, HIDDEN, DROPOUT, WINDOW, BATCH, RATE = 64, 160, 0.3, 256, 16, 1e-2
ORDER = 8  # of the n-grams


class Composer(nn.Module):
    """`library` is torch.nn or fastrnn."""

    def __init__(self, library):
        super().__init__()
        self.symbol = nn.Embedding(SYMBOLS + 1, WIDTH)
        self.place = nn.Embedding(BAR, WIDTH)
        self.rnn = library.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.scores = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(HIDDEN, SYMBOLS))

    def embed(self, before: Tensor, places: Tensor) -> Tensor:
        """The symbols before those to predict, and the places of these: their voice and beat."""
        return self.symbol(before) + self.place(places % BAR)

    def forward(self, before: Tensor, places: Tensor) -> Tensor:
        """(N, T) and (N, T) -> scores (N, T, SYMBOLS)."""
        return self.scores(self.rnn(self.embed(before, places))[0])


def sequence(piece: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What precedes each symbol, its place, and itself; each (1, T)."""
    symbols = torch.tensor([[BEGIN, *piece]])
    return symbols[:, :-1], torch.arange(len(piece)).unsqueeze(0), symbols[:, 1:]


def excerpts(pieces: list[list[int]], steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches of windows that begin with a random bar; (BATCH, WINDOW) each."""
    long = [sequence(piece) for piece in pieces if len(piece) >= WINDOW]
    batches = []
    for _ in range(steps):
        rows = []
        for i in torch.randint(len(long), (BATCH,)).tolist():
            bars = (long[i][0].size(1) - WINDOW) // BAR + 1
            start = BAR * int(torch.randint(bars, ()))
            rows.append([x[:, start : start + WINDOW] for x in long[i]])
        batches.append(tuple(torch.cat(column) for column in zip(*rows, strict=True)))
    return batches


def train(library, label: str, pieces: list[list[int]], options) -> tuple[Composer, Run]:
    torch.manual_seed(options.seed)
    model = Composer(library)

    def loss(before: Tensor, places: Tensor, symbols: Tensor) -> Tensor:
        return cross_entropy(model(before, places).flatten(0, 1), symbols.flatten())

    run = fit(model, excerpts(pieces, options.steps), loss, RATE, label, lambda x, *_: x.numel())
    return model.eval(), run


@torch.no_grad()
def bits(model: Composer, pieces: list[list[int]]) -> float:
    """Bits that the model needs for an eighth of all four voices."""
    total = 0.0
    for piece in pieces:
        before, places, symbols = sequence(piece)
        total += cross_entropy(model(before, places)[0], symbols[0], reduction="sum").item()
    return 4 * total / math.log(2) / sum(map(len, pieces))


def ngram_bits(learn: list[list[int]], pieces: list[list[int]]) -> float:
    """The same of the n-grams; they know the voice, as their contexts do not."""
    counts: dict[tuple, Counter] = defaultdict(Counter)

    def contexts(piece: list[int], i: int):
        for n in range(min(i, ORDER) + 1):
            yield i % 4, *piece[i - n : i]

    for piece in learn:
        for i, symbol in enumerate(piece):
            for context in contexts(piece, i):
                counts[context][symbol] += 1
    total = 0.0
    for piece in pieces:
        for i, symbol in enumerate(piece):
            p = 1 / SYMBOLS
            for context in contexts(piece, i):
                if (seen := counts.get(context)) is not None:
                    p = (seen[symbol] + len(seen) * p) / (seen.total() + len(seen))
            total -= math.log2(p)
    return 4 * total / sum(map(len, pieces))


@torch.no_grad()
def compose(model: Composer, bars: int, seed: int) -> tuple[list[int], float]:
    """A new chorale, and seconds a symbol."""
    generator = torch.Generator().manual_seed(seed)
    step, symbols, start = stepper(model.rnn), [BEGIN], time.perf_counter()
    for place in range(bars * BAR):
        x = model.embed(torch.tensor(symbols[-1:]), torch.tensor([place]))
        likely = model.scores(step(x))[0].softmax(-1)
        likely[likely < 0.04] = 0  # nothing too strange
        likely[REST] = 0
        symbols.append(int(likely.multinomial(1, generator=generator)))
    return symbols[1:], (time.perf_counter() - start) / (bars * BAR)


def draw(written: list[int], real: list[int], options) -> None:
    figure, axes = picture(2, 1, (9, 5))
    for ax, piece, title in zip(
        axes, (written, real), ("Written by the LSTM", "Bach"), strict=True
    ):
        for voice, name in enumerate(VOICES):
            for begin, end, number in notes(piece, voice):
                ax.plot([begin / 8, end / 8 - 0.02], [number] * 2, color=f"C{voice}", lw=4)
            ax.plot([], [], color=f"C{voice}", lw=4, label=name)
        ax.set(xlim=(0, 12), ylabel="MIDI number", xticks=range(13))
        ax.set_title(title, loc="left")
    axes[0].legend(ncols=4, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    axes[1].set_xlabel("bar")
    save(figure, "chorales", options)


def main() -> None:
    options = parse(__doc__, steps=500)
    if options.smoke:
        options.steps = 16
    pieces = load(40 if options.smoke else None)
    learn, held_out = [p for i, p in enumerate(pieces) if i % 10], pieces[::10]
    console.print(f"{len(learn)} chorales to learn from, {len(held_out)} to test on")
    runs = {}
    for name, library in libraries(options).items():
        model, runs[name] = train(library, name, learn, options)
        piece, seconds = compose(model, 12, options.seed)
        runs[name].metrics = {
            "bits for four voices, learned": bits(model, learn),
            "bits for four voices, held out": bits(model, held_out),
            "µs a symbol in composing": 1e6 * seconds,
        }
    baseline = {"bits for four voices, held out": ngram_bits(learn, held_out)}
    report(runs, baseline, options)
    write_midi(piece, options.out / "chorale.mid")
    console.print(f"music: {options.out / 'chorale.mid'}")
    draw(piece, held_out[1], options)


if __name__ == "__main__":
    main()
