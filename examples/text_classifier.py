"""Which language is this sentence written in? A character-level text classifier on real data.

The corpus is the interface of Django (https://www.djangoproject.com, BSD-3-Clause). Volunteers
translated its few hundred messages into some hundred languages. Every installed copy carries them
as compiled gettext catalogues. A message is a text, and its folder is its label.

Texts differ in length. With `lengths=` the padding of a batch does not exist for the LSTM. The
final state of each direction is that after the text's own last, or first, character. The baseline
is a bag of words: naive Bayes on the words of the same texts.

    pip install -e '.[examples]'
    python examples/text_classifier.py --backend both
"""

import importlib.util
import math
import re
import struct
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import Run, console, fit, libraries, over_lengths, parse, picture, report, save

# All in Latin letters, and with close relatives among them (da sv, cs pl, es it pt, de nl).
LANGUAGES = "cs da de es fi fr it nl pl pt sv tr".split()
SHORTEST, LONGEST = 5, 20  # characters in a text, one to four words; a message makes several
WIDTH, HIDDEN, BATCH, RATE = 32, 64, 32, 1e-2
MARKUP = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}|<[^>]*>|\s+")  # the same in every language: dropped


class Text(NamedTuple):
    text: str
    characters: Tensor  # (length,) int64, indices into the alphabet; 0 is kept for padding
    label: int


class Corpus(NamedTuple):
    train: list[Text]
    test: list[Text]
    characters: int  # size of the alphabet, padding included


class Classifier(nn.Module):
    """(N, T) characters, lengths (N,) -> (N, languages) scores. `library`: torch.nn or fastrnn."""

    def __init__(self, library, characters: int, languages: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, WIDTH, padding_idx=0)
        self.rnn = library.LSTM(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.scores = nn.Linear(2 * HIDDEN, languages)

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        _, (h, _) = over_lengths(self.rnn, self.embedding(characters), lengths)
        return self.scores(torch.cat([h[0], h[1]], -1))


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
        row = Text(text, torch.tensor([index[character] for character in text]), label)
        (test if held_out else train).append(row)
    return Corpus(train, test, len(alphabet) + 1)


def batches(texts: list[Text], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(N, T) characters, padded on the right, (N,) lengths and (N,) labels, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    for rows in torch.randperm(len(texts), generator=generator).split(size):
        part = [texts[i] for i in rows.tolist()]
        padded = nn.utils.rnn.pad_sequence([text.characters for text in part], batch_first=True)
        lengths = torch.tensor([len(text.characters) for text in part])
        yield padded, lengths, torch.tensor([text.label for text in part])


def train(library, label: str, corpus: Corpus, options) -> tuple[Classifier, Run]:
    torch.manual_seed(options.seed)
    languages = 1 + max(text.label for text in corpus.train)
    model = Classifier(library, corpus.characters, languages)
    schedule = [
        batch
        for epoch in range(options.epochs)
        for batch in batches(corpus.train, BATCH, options.seed + epoch)
    ]

    def loss(characters: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(characters, lengths), labels)

    return model, fit(model, schedule, loss, RATE, label)


@torch.no_grad()
def guesses(model: Classifier, texts: list[Text]) -> Tensor:
    """(texts,) labels, in the order of the texts."""
    padded = nn.utils.rnn.pad_sequence([text.characters for text in texts], batch_first=True)
    lengths = torch.tensor([len(text.characters) for text in texts])
    parts = zip(padded.split(128), lengths.split(128), strict=True)
    return torch.cat([model(*part).argmax(-1) for part in parts])


def bag_of_words(corpus: Corpus) -> float:
    """Accuracy of naive Bayes with add-one smoothing on the words of a text."""
    bags: dict[int, Counter] = {}
    for text in corpus.train:
        bags.setdefault(text.label, Counter()).update(re.findall(r"\w+", text.text))
    words = len(set().union(*bags.values()))

    def likelihood(text: str, label: int) -> float:
        bag, total = bags[label], bags[label].total() + words
        return sum(math.log((bag[word] + 1) / total) for word in re.findall(r"\w+", text))

    right = sum(
        max(bags, key=lambda label, text=text.text: likelihood(text, label)) == text.label
        for text in corpus.test
    )
    return right / len(corpus.test)


def draw(languages: list[str], labels: Tensor, guessed: Tensor, options) -> None:
    size = len(languages)
    counts = torch.bincount(labels * size + guessed, minlength=size * size).view(size, size)
    share = counts / counts.sum(1, keepdim=True)
    figure, axes = picture(size=(5, 4.6))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in counts.nonzero().tolist():
        colour = "white" if share[row, column] > 0.5 else "black"
        text = int(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(size), languages)
    axes.set_yticks(range(size), languages)
    axes.set(xlabel="taken for", ylabel="written in")
    axes.set_title("Texts not seen in training, by language", loc="left")
    save(figure, "text_classifier", options)


def main() -> None:
    options = parse(__doc__, epochs=5)
    languages = LANGUAGES[1:6] if options.smoke else LANGUAGES
    if options.smoke:
        options.epochs = 1
    corpus = load(languages)
    labels = torch.tensor([text.label for text in corpus.test])
    console.print(
        f"{len(corpus.train)} texts to learn from, {len(corpus.test)} to test on, "
        f"{len(languages)} languages"
    )
    runs = {}
    for name, library in libraries(options).items():
        model, runs[name] = train(library, name, corpus, options)
        guessed = guesses(model, corpus.test)
        runs[name].metrics = {"accuracy, %": (guessed == labels).double().mean().item()}
    report(runs, {"accuracy, %": bag_of_words(corpus)}, options)
    draw(languages, labels, guessed, options)


if __name__ == "__main__":
    main()
