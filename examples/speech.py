"""Spoken digits to text: log-mel features, a stack of GRUs and CTC; at once, and as a stream.

The voices of espeak-ng (see voices.py) speak strings of two to five digits, in noise. Two models
learn them with connectionist temporal classification (Graves et al. 2006). A bidirectional stack
needs the end of the recording before it says anything. A unidirectional one then runs frame by
frame, as it would behind a microphone: with fastrnn by `Streamer`, with torch.nn by calls of one
time step. The word error rate is that of voices not heard in training.

    pip install -e '.[examples]'
    python examples/speech.py --backend both
"""

import math
import time
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from common import console, fit, libraries, over_lengths, parse, picture, report, save, stepper
from voices import RATE, Utterance, utterances

WINDOW, HOP, MELS = 512, 441, 40  # samples: 23 ms, 20 ms
STACK = 2  # spectra in a frame, which is one time step of the GRU
BLANK = 10  # after the digits
HIDDEN, LAYERS, DROPOUT, BATCH, PEAK = 48, 2, 0.2, 8, 1e-2
MEAN, DEVIATION = -1.8, 3.0  # of the logarithm of the power, about


class Recogniser(nn.Module):
    """(N, T, STACK * MELS), lengths (N,) -> log-probabilities (N, T, 11). `library` is torch.nn or
    fastrnn."""

    def __init__(self, library, bidirectional: bool):
        super().__init__()
        directions = 2 if bidirectional else 1
        width = HIDDEN if bidirectional else 2 * HIDDEN
        self.rnn = library.GRU(
            STACK * MELS,
            width,
            LAYERS,
            batch_first=True,
            bidirectional=bidirectional,
        )
        # Not between the layers, where torch.nn, having packed, would drop others.
        self.dropout = nn.Dropout(DROPOUT)
        self.scores = nn.Linear(directions * width, BLANK + 1)

    def forward(self, mels: Tensor, lengths: Tensor) -> Tensor:
        output, _ = over_lengths(self.rnn, mels, lengths)
        return self.scores(self.dropout(output)).log_softmax(-1)


def mel_filters() -> Tensor:
    """(WINDOW / 2 + 1, MELS) triangles, evenly spaced on the mel scale of O'Shaughnessy 1987."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1).unsqueeze(1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def features(audio: Tensor) -> Tensor:
    """(samples,) -> frames (T, STACK * MELS)."""
    window = torch.hann_window(WINDOW, dtype=audio.dtype)
    spectrum = torch.stft(audio, WINDOW, HOP, window=window, center=False, return_complex=True)
    power = spectrum.abs().square().T @ mel_filters().to(audio)
    mels = ((power + 1e-6).log() - MEAN) / DEVIATION
    return mels[: len(mels) // STACK * STACK].view(-1, STACK * MELS)


def tensors(part: list[Utterance]) -> tuple[Tensor, ...]:
    """frames (N, T, STACK * MELS), lengths (N,), digits (all digits of all rows,), counts (N,)."""
    mels = [features(u.audio).to(torch.get_default_dtype()) for u in part]
    lengths = torch.tensor([len(rows) for rows in mels])
    digits = torch.tensor([digit for u in part for digit in u.digits])
    counts = torch.tensor([len(u.digits) for u in part])
    return pad_sequence(mels, batch_first=True), lengths, digits, counts


def train(library, label: str, batches: list, bidirectional: bool, options):
    torch.manual_seed(options.seed)
    model = Recogniser(library, bidirectional)
    # The first time from short to long, which makes CTC begin to learn (Amodei et al. 2016).
    orders = [torch.randperm(len(batches)).tolist() for _ in range(options.epochs - 1)]
    orders = [list(range(len(batches))), *orders]

    def loss(mels: Tensor, lengths: Tensor, digits: Tensor, counts: Tensor) -> Tensor:
        scores = model(mels, lengths).transpose(0, 1)
        return ctc_loss(scores, digits, lengths, counts, blank=BLANK)

    schedule = [batches[i] for order in orders for i in order]
    run = fit(model, schedule, loss, PEAK, label)
    return model.eval(), run


def collapse(best: list[int]) -> list[int]:
    """The digits of a path of CTC: no repetitions, then no blanks."""
    changes = [k for k, before in zip(best, [BLANK, *best], strict=False) if k != before]
    return [k for k in changes if k != BLANK]


def errors(heard: list[int], said: list[int]) -> int:
    """Insertions, deletions and substitutions (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for i, a in enumerate(heard, start=1):
        last, row[0] = row[0], i
        for j, b in enumerate(said, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def error_rate(heard: list[list[int]], said: list[Utterance]) -> float:
    wrong = sum(errors(h, u.digits) for h, u in zip(heard, said, strict=True))
    return wrong / sum(len(u.digits) for u in said)


@torch.no_grad()
def at_once(model: Recogniser, part: list[Utterance]) -> list[list[int]]:
    mels, lengths, _, _ = tensors(part)
    best = model(mels, lengths).argmax(-1)
    return [collapse(row[:n].tolist()) for row, n in zip(best, lengths, strict=True)]


@torch.no_grad()
def listen(model: Recogniser, utterance: Utterance) -> tuple[list[int], float, Tensor]:
    """Frame by frame: digits, seconds a frame in the GRU, probabilities (T, 11)."""
    step, scores, spent = stepper(model.rnn), [], 0.0
    for frame in features(utterance.audio).to(torch.get_default_dtype()).split(1):
        start = time.perf_counter()
        output = step(frame)
        spent += time.perf_counter() - start
        scores.append(model.scores(output).softmax(-1))
    scores = torch.cat(scores)
    return collapse(scores.argmax(-1).tolist()), spent / len(scores), scores


def draw(utterance: Utterance, heard: list[int], scores: Tensor, options) -> None:
    figure, (top, bottom) = picture(2, 1, (9, 4.4))
    seconds = len(utterance.audio) / RATE
    extent = (0, seconds, 0, MELS)
    top.imshow(
        features(utterance.audio).view(-1, MELS).T, origin="lower", aspect="auto", extent=extent
    )
    said = " ".join(map(str, utterance.digits))
    top.set_title(f'The voice "{utterance.voice}" says {said}', loc="left")
    top.set(ylabel="mel band", xticks=[])
    at = torch.arange(len(scores)) * STACK * HOP / RATE
    for digit in sorted({*utterance.digits, *heard}):
        bottom.fill_between(at, scores[:, digit], alpha=0.6, lw=0)
    path = [BLANK, *scores.argmax(-1).tolist()]
    for t, (before, digit) in enumerate(pairwise(path)):
        if digit not in (before, BLANK):
            bottom.text(at[t], 1.05, digit, ha="center", weight="bold")
    bottom.set_title(f"Heard frame by frame: {' '.join(map(str, heard))}", loc="left")
    bottom.set(xlabel="s", ylabel="probability", xlim=(0, seconds), ylim=(0, 1.2))
    save(figure, "speech", options)


def main() -> None:
    options = parse(__doc__, epochs=5, utterances=1200)
    if options.smoke:
        options.epochs, options.utterances = 8, 48
    learn = sorted(utterances(options.utterances, False, 1), key=lambda u: len(u.audio))
    held_out = utterances(options.utterances // 6, True, 2)
    voices = {u.voice for u in learn}, {u.voice for u in held_out}
    console.print(f"learns from {len(voices[0])} voices, {len(voices[1])} others are the test")
    batches = [tensors(learn[k : k + BATCH]) for k in range(0, len(learn), BATCH)]
    runs = {}
    for name, library in libraries(options).items():
        both, runs[name] = train(library, f"{name}, bidirectional", batches, True, options)
        model, streaming = train(library, f"{name}, streaming", batches, False, options)
        heard = [listen(model, utterance) for utterance in held_out]
        runs[name].losses += streaming.losses
        runs[name].metrics = {
            "word error rate, bidirectional, %": error_rate(at_once(both, held_out), held_out),
            "word error rate, streaming, %": error_rate([h[0] for h in heard], held_out),
            "GRU's µs a frame, streaming": 1e6 * sum(h[1] for h in heard) / len(heard),
        }
    report(runs, {}, options)
    longest = max(range(len(held_out)), key=lambda i: len(held_out[i].digits))
    digits, _, scores = heard[longest]
    draw(held_out[longest], digits, scores, options)


if __name__ == "__main__":
    main()
