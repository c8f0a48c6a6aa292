"""Dates as people write them, in 24 languages, to ISO 8601: an encoder and decoder with attention.

"onsdag den 7. marts 1984", "7 Μαρτίου 1984", "sept mars mille neuf cent quatre-vingt-quatre" ->
1984-03-07. Patterns and names come from the Unicode CLDR (Unicode licence), in the package Babel
(BSD-3-Clause). num2words (LGPL-2.1) spells the numbers of every other date. The model sees
characters, and neither language nor format. The test dates do not occur in training, in any
language.

The encoder is a bidirectional stack of GRUs. The decoder is a stack of GRUs with dot-product
attention over the encoder's output (Luong et al. 2015). In training the decoder gets the right
answer as its input, so all its steps are one call.

    pip install -e '.[examples]'
    python examples/dates.py --backend both
"""

import random
import time
from datetime import date, timedelta

import torch
from babel.dates import format_date, format_skeleton
from num2words import num2words
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from common import Run, console, fit, libraries, over_lengths, parse, picture, report, save

SPELLED = "ar bn cs da de en es fi fr he hu it ko nl pl pt ru tr".split()
LANGUAGES = SPELLED + "el hi ja sw vi zh".split()
FORMATS = "full long medium yMMMEd GyMMMd".split()  # CLDR's names; short ones are ambiguous
FIRST_DAY, DAYS = date(1900, 1, 1), 73_049  # to the end of 2099
OUTPUT = "0123456789-^"  # ^ is before the first
WIDTH, HIDDEN, LAYERS, BATCH, RATE = 48, 96, 2, 64, 1e-2


class Translator(nn.Module):
    """`library` is torch.nn or fastrnn."""

    def __init__(self, library, characters: int):
        super().__init__()
        self.read = nn.Embedding(characters, WIDTH, padding_idx=0)
        self.encoder = library.GRU(WIDTH, HIDDEN // 2, LAYERS, batch_first=True, bidirectional=True)
        self.written = nn.Embedding(len(OUTPUT), WIDTH)
        self.decoder = library.GRU(WIDTH, HIDDEN, LAYERS, batch_first=True)
        self.scores = nn.Linear(2 * HIDDEN, len(OUTPUT))

    def encode(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S) and (N,) -> memory (N, S, HIDDEN), zero where padded, and the decoder's first
        state (LAYERS, N, HIDDEN): of each layer the final states of both directions."""
        memory, h = over_lengths(self.encoder, self.read(text), lengths)
        return memory, h.unflatten(0, (LAYERS, 2)).transpose(1, 2).flatten(2)

    def decode(self, written: Tensor, state: Tensor, memory: Tensor, text: Tensor):
        """What is written (N, T) -> scores of what comes next (N, T, len(OUTPUT)), state, and
        attention (N, T, S)."""
        output, state = self.decoder(self.written(written), state)
        match = output @ memory.mT / HIDDEN**0.5
        attention = match.masked_fill(text.unsqueeze(1) == 0, -torch.inf).softmax(-1)
        return self.scores(torch.cat([output, attention @ memory], -1)), state, attention

    def forward(self, text: Tensor, lengths: Tensor, written: Tensor) -> Tensor:
        """Teacher forcing: the scores of every next character, the right ones being before it."""
        memory, state = self.encode(text, lengths)
        return self.decode(written, state, memory, text)[0]

    @torch.no_grad()
    def translate(self, text: Tensor, lengths: Tensor, width: int) -> Tensor:
        """The best dates (N, 10) by beam search, which is greedy if `width` is 1."""
        memory, state = self.encode(text, lengths)
        memory, text = memory.repeat_interleave(width, 0), text.repeat_interleave(width, 0)
        state = state.repeat_interleave(width, 1)
        written = torch.full((len(text), 1), OUTPUT.index("^"))
        total = torch.full((len(lengths), width), -torch.inf)
        total[:, 0] = 0  # the beam begins as one
        rows = torch.arange(len(lengths)).unsqueeze(1) * width
        for _ in range(10):
            scores, state, _ = self.decode(written[:, -1:], state, memory, text)
            paths = total.unsqueeze(2) + scores.log_softmax(-1).view(*total.shape, -1)
            total, best = paths.flatten(1).topk(width)
            parent = (rows + best // len(OUTPUT)).flatten()
            written = torch.cat([written[parent], best.view(-1, 1) % len(OUTPUT)], 1)
            state = state[:, parent]
        return written[rows.squeeze(1), 1:]


def write(day: date, form: str, language: str) -> str:
    if form in ("yMMMEd", "GyMMMd"):
        return format_skeleton(form, day, locale=language).lower()
    if form != "words":
        return format_date(day, form, locale=language).lower()
    number, year = num2words(day.day, lang=language), num2words(day.year, lang=language, to="year")
    return f"{number} {format_date(day, 'MMMM', locale=language)} {year}".lower()


def load(count: int) -> tuple[list, list, dict[str, int]]:
    """Pairs of text and ISO date to learn from and to test on; the characters' indices. A tenth
    of all days is only for the test."""
    rng = random.Random(0)
    train, test = [], []
    for _ in range(count):
        number = rng.randrange(DAYS)
        day = FIRST_DAY + timedelta(number)
        language = rng.choice(LANGUAGES)
        words = language in SPELLED and rng.random() < 0.5
        text = write(day, "words" if words else rng.choice(FORMATS), language)
        held_out = number * 2654435761 % 2**32 < 2**32 // 10  # Fibonacci hashing
        (test if held_out else train).append((text, day.isoformat()))
    alphabet = sorted({character for text, _ in train + test for character in text})
    return train, test, {character: i for i, character in enumerate(alphabet, start=1)}


def tensors(pairs: list, index: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """text (N, S), lengths (N,), ^ and date (N, 11)."""
    texts = [torch.tensor([index[character] for character in text]) for text, _ in pairs]
    dates = [[OUTPUT.index(character) for character in "^" + iso] for _, iso in pairs]
    lengths = torch.tensor([len(text) for text in texts])
    return pad_sequence(texts, batch_first=True), lengths, torch.tensor(dates)


def train(library, label: str, pairs: list, index: dict, options) -> tuple[Translator, Run]:
    torch.manual_seed(options.seed)
    model = Translator(library, len(index) + 1)
    orders = [torch.randperm(len(pairs)).split(BATCH) for _ in range(options.epochs)]
    batches = (tensors([pairs[i] for i in rows], index) for order in orders for rows in order)

    def loss(text: Tensor, lengths: Tensor, dates: Tensor) -> Tensor:
        scores = model(text, lengths, dates[:, :-1])
        return cross_entropy(scores.flatten(0, 1), dates[:, 1:].flatten())

    return model, fit(model, batches, loss, RATE, label)


def test(model: Translator, pairs: list, index: dict) -> dict[str, float]:
    text, lengths, dates = tensors(pairs, index)
    metrics = {}
    for name, width in (("greedy", 1), ("beam of 4", 4)):
        start = time.perf_counter()
        right = (model.translate(text, lengths, width) == dates[:, 1:]).all(-1)
        seconds = time.perf_counter() - start
        metrics[f"exact, {name}, %"] = right.double().mean().item()
        metrics[f"dates/s, {name}"] = len(text) / seconds
    return metrics


@torch.no_grad()
def draw(model: Translator, index: dict, options) -> None:
    day = date(1984, 3, 7)
    examples = [("full", "vi"), ("GyMMMd", "el"), ("words", "fr"), ("words", "de")]
    pairs = [(write(day, *example), day.isoformat()) for example in examples]
    text, lengths, dates = tensors(pairs, index)
    memory, state = model.encode(text, lengths)
    _, _, attention = model.decode(dates[:, :-1], state, memory, text)
    figure, axes = picture(2, 2, (9, 6))
    for ax, (words, iso), weights in zip(axes.flat, pairs, attention, strict=True):
        ax.imshow(weights[:, : len(words)], cmap="Blues", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(words)), words)
        ax.set_yticks(range(10), iso)
        ax.tick_params(length=0)
    figure.suptitle("Where the decoder looks (across) when it writes a character (down)")
    save(figure, "dates", options)


def main() -> None:
    options = parse(__doc__, epochs=2, pairs=24_000)
    if options.smoke:
        options.epochs, options.pairs = 1, 2000
    learn, held_out, index = load(options.pairs)
    console.print(f"{len(learn)} dates to learn from, {len(held_out)} to test on: {learn[0]}")
    runs = {}
    for name, library in libraries(options).items():
        model, runs[name] = train(library, name, learn, index, options)
        runs[name].metrics = test(model, held_out, index)
    report(runs, {}, options)
    draw(model, index, options)


if __name__ == "__main__":
    main()
