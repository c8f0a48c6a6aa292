"""Which language is this sentence written in? A character-level text classifier on real data.

The corpus is the interface of Django (https://www.djangoproject.com, BSD-3-Clause): a few hundred
messages that volunteers translated into some hundred languages and that every installed copy
carries as compiled gettext catalogues. A message is a text, the folder it lies in is its label.

    pip install "django>=5.2" rich
    python examples/text_classifier.py --backend both

With one seed both backends follow one loss curve until rounding parts them: training multiplies a
difference by ten every few dozen steps, and torch.nn in float32 leaves torch.nn in float64 just as
soon. The short `--smoke --dtype float64` stays on one curve to its end.
"""

import argparse
import importlib.util
import re
import struct
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastrnn

LIBRARIES = {"torch": nn, "fastrnn": fastrnn}
# All in Latin letters, and with close relatives among them (da sv, cs pl, es it pt, de nl).
LANGUAGES = "cs da de es fi fr it nl pl pt sv tr".split()
SHORTEST, LONGEST = 15, 60  # characters in a text; a longer message makes several
WIDTH, HIDDEN, BATCH, RATE = 32, 64, 32, 1e-2
MARKUP = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}|<[^>]*>|\s+")  # the same in every language: dropped


class Text(NamedTuple):
    characters: Tensor  # (length,) int64, indices into the alphabet; 0 is kept for padding
    label: int


class Corpus(NamedTuple):
    train: list[Text]
    test: list[Text]
    characters: int  # size of the alphabet, padding included


class Result(NamedTuple):
    losses: list[float]  # one a step
    accuracy: float  # of the test texts
    samples_per_second: float  # of training


class Classifier(nn.Module):
    """(N, T) characters -> (N, languages) scores. `library` is torch.nn or fastrnn."""

    def __init__(self, library, characters: int, languages: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH, padding_idx=0)
        self.rnn = library.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * HIDDEN, languages)

    def forward(self, characters: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(characters))
        return self.scores(output[:, -1])


def catalogue(path: Path) -> dict[str, str]:
    """A gettext file (its manual: "The Format of GNU MO Files"): original -> translation."""
    data = path.read_bytes()
    _, _, count, originals, translations = struct.unpack("<5I", data[:20])

    def strings(table: int) -> list[str]:
        entries = struct.iter_unpack("<2I", data[table : table + 8 * count])
        return [data[start:][:length].decode() for length, start in entries]

    return dict(zip(strings(originals), strings(translations), strict=True))


def messages(language: str) -> dict[str, list[str]]:
    """Original -> the texts that its translation makes; none where it is only a word or two."""
    (django,) = importlib.util.find_spec("django").submodule_search_locations
    found = {}
    for path in sorted(Path(django).glob(f"**/locale/{language}/LC_MESSAGES/django.mo")):
        for original, translation in catalogue(path).items():
            singular = translation.split("\0")[0].lower()
            lines = textwrap.wrap(MARKUP.sub(" ", singular), LONGEST)
            found[original] = [line for line in lines if len(line) >= SHORTEST]
    found.pop("", None)  # the empty original holds the file's header
    return found


def load(languages: list[str]) -> Corpus:
    """All translations of one message are on the same side of the split, so that no test text
    has a sibling in the training set that shares its names and loan words."""
    texts = [
        (text, label, zlib.crc32(original.encode()) % 5 == 0)
        for label, language in enumerate(languages)
        for original, lines in messages(language).items()
        for text in lines
    ]
    alphabet = sorted(set("".join(text for text, _, _ in texts)))
    index = {character: i for i, character in enumerate(alphabet, start=1)}
    train, test = [], []
    for text, label, held_out in texts:
        row = Text(torch.tensor([index[character] for character in text]), label)
        (test if held_out else train).append(row)
    return Corpus(train, test, len(alphabet) + 1)


def batches(texts: list[Text], size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """(N, T) characters and (N,) labels, shuffled, but texts of similar length share a batch."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
    shuffled.sort(key=lambda text: len(text.characters))
    groups = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    for i in torch.randperm(len(groups), generator=generator).tolist():
        rows, labels = zip(*groups[i], strict=True)
        # Padding goes to the left: the last time step is then the last character of every text,
        # and output[:, -1] is what the forward direction says after reading all of it.
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        yield padded, torch.tensor(labels)


@torch.no_grad()
def score(model: nn.Module, texts: list[Text]) -> float:
    model.eval()
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches(texts, 128))
    return right / len(texts)


def fit(library, corpus: Corpus, seed: int, epochs: int, dtype, watch: Callable = iter) -> Result:
    """Train one classifier. Everything but `library` being equal, so is the loss curve."""
    torch.manual_seed(seed)
    languages = 1 + max(text.label for text in corpus.train)
    model = Classifier(library, corpus.characters, languages).to(dtype)
    schedule = [b for epoch in range(epochs) for b in batches(corpus.train, BATCH, seed + epoch)]
    optimizer = torch.optim.Adam(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(schedule))
    losses, start = [], time.perf_counter()
    for characters, labels in watch(schedule):
        loss = cross_entropy(model(characters), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    speed = epochs * len(corpus.train) / (time.perf_counter() - start)
    return Result(losses, score(model, corpus.test), speed)


def main(arguments: list[str] | None = None) -> dict[str, Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backend", choices=[*LIBRARIES, "both"], default="both")
    add("--seed", type=int, default=0)
    add("--epochs", type=int, default=6)
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--threads", type=int, default=1, help="more gain little on a model so small")
    add("--smoke", action="store_true", help="five languages, one epoch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    languages, epochs = (LANGUAGES[1:6], 1) if options.smoke else (LANGUAGES, options.epochs)
    corpus = load(languages)
    majority = max(Counter(text.label for text in corpus.test).values()) / len(corpus.test)
    print(
        f"{len(corpus.train)} texts to learn from, {len(corpus.test)} to test on, "
        f"{len(languages)} languages; always guessing one language scores {majority:.1%}"
    )
    results = {}
    for name in LIBRARIES if options.backend == "both" else [options.backend]:
        watch = partial(track, description=f"{name:8}", transient=True)
        dtype = getattr(torch, options.dtype)
        results[name] = fit(LIBRARIES[name], corpus, options.seed, epochs, dtype, watch)
        losses, accuracy, speed = results[name]
        print(
            f"{name:8} loss {losses[0]:.3f} -> {fmean(losses[-20:]):.3f}   "
            f"accuracy {accuracy:.1%}   {speed:,.0f} samples/s"
        )
    if len(results) == 2:
        ours, torchs = results["fastrnn"], results["torch"]
        gaps = [abs(a - b) for a, b in zip(ours.losses, torchs.losses, strict=True)]
        ratio = ours.samples_per_second / torchs.samples_per_second
        print(
            f"the loss curves are {max(gaps[:20]):.0e} apart in the first 20 steps, "
            f"{max(gaps):.0e} at most; fastrnn trains {ratio:.2f} times as fast"
        )
    return results


if __name__ == "__main__":
    main()
