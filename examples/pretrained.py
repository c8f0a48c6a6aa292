"""Small weights in three pretrained models: what they change in the end, and what a step takes.

A speaker's embedding (Resemblyzer: three LSTM layers of 256 units on 40 mel bands), a detector of
speech (silero-vad: an LSTM of 128 units behind convolutions), and the phonemes of a word (g2p_en:
two GRUs of 256 units). All run as a `Streamer` with weights in float32, and in each small format.
The voices of espeak-ng (see voices.py) say sentences; the words are those of Python's own
documentation. The weights come inside packages, whose own dependencies are not needed:

    pip install -e '.[examples]'
    pip install --no-deps resemblyzer silero-vad g2p-en
    python examples/pretrained.py
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

import fastrnn
from common import console
from voices import RATE, Synthesizer

SAMPLES = 16_000  # a second, of both models of speech
VOICES = (("en-us", "f3"), ("en-us", "m1"), ("en-gb-x-rp", "f5"), ("en-gb-scotland", "m5"))
SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "She sells sea shells by the sea shore every single morning in June.",
    "Recurrent networks keep a small memory of everything they have heard.",
    "Please call Stella and ask her to bring these things from the store.",
)
OPTIONS = {
    "float32": {},
    "float16": {"weights": "float16"},
    "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"},
    "all int8": {"weights": {"*": "int8"}},
    "all int8, activations int8": {"weights": {"*": "int8"}, "activations": "int8"},
}
Stream = Callable[[Tensor], Tensor]


def folder(package: str) -> Path:
    """Where a package lies; it is not imported, nor is what it depends on."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps resemblyzer silero-vad g2p-en")
    return Path(found.submodule_search_locations[0])


def loaded(kind: type, weights: dict[str, Tensor], layers: int = 1):
    hidden, width = weights["weight_hh_l0"].size(1), weights["weight_ih_l0"].size(1)
    module = kind(width, hidden, layers)
    module.load_state_dict(weights)
    return module.requires_grad_(False)


def speech() -> list[Tensor]:
    """Each sentence by each voice, (samples,)."""
    synthesizer, made = Synthesizer(), []
    for accent, voice in VOICES:
        for sentence in SENTENCES:
            audio = synthesizer.speak(sentence, voice, accent, speed=150, pitch=50)
            size = len(audio) * SAMPLES // RATE
            made.append(nn.functional.interpolate(audio[None, None], size, mode="linear")[0, 0])
    return made


class Embedding:
    """Resemblyzer. The cosine of a window's embedding with that of float32."""

    figure, decimals = "least cosine of an embedding with float32's", 5
    window, hop = 400, 160  # samples of a spectrum; its mel bands are not logarithms
    frames = 160  # that an embedding is made of

    def __init__(self) -> None:
        path = folder("resemblyzer") / "pretrained.pt"
        weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        lstm = {k.removeprefix("lstm."): w for k, w in weights.items() if k.startswith("lstm.")}
        self.module = loaded(fastrnn.LSTM, lstm, layers=3)
        self.linear = weights["linear.weight"].T, weights["linear.bias"]
        windows = []
        for audio in speech():
            audio = audio * (10 ** (-30 / 20) / audio.square().mean().sqrt())
            bands = self.mels(audio)
            windows += [
                bands[at : at + self.frames] for at in range(0, len(bands) - self.frames, 80)
            ]
        self.input = torch.stack(windows, 1)

    def mels(self, audio: Tensor) -> Tensor:
        """(frames, 40) sums of power, over triangles as librosa's: even below a kilohertz, then
        even in its logarithm, and each of one area."""
        knee, step = 1000.0, np.log(6.4) / 27
        top = 15 + np.log(SAMPLES / 2 / knee) / step
        even = torch.linspace(0, top, 42, dtype=torch.float64)
        edges = torch.where(even < 15, even * 200 / 3, knee * (step * (even - 15)).exp())
        bins = torch.linspace(0, SAMPLES / 2, self.window // 2 + 1, dtype=torch.float64)[:, None]
        low, middle, high = edges[:-2], edges[1:-1], edges[2:]
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
        filters = torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)
        spectra = torch.stft(
            audio,
            self.window,
            self.hop,
            window=torch.hann_window(self.window),
            pad_mode="constant",
            return_complex=True,
        )
        return spectra.abs().square().T @ filters.float()

    def run(self, make: Callable[..., Stream]) -> Tensor:
        stream = make(self.module, self.input.size(1))
        for x in self.input:
            y = stream(x)
        weight, bias = self.linear
        return normalize((y @ weight + bias).relu(), dim=1)

    def change(self, got: Tensor, wanted: Tensor) -> float:
        return (got * wanted).sum(1).min().item()


class Detector:
    """silero-vad. The probability of speech in each window of 32 ms."""

    figure, decimals = "largest change of a probability", 4
    window, context = 512, 64

    def __init__(self) -> None:
        path = folder("silero_vad") / "data" / "silero_vad.jit"
        whole = torch.jit.load(path, map_location="cpu").eval()
        model = whole._model
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell = dict(model.decoder.rnn.named_parameters())
        self.module = loaded(fastrnn.LSTM, {f"{name}_l0": cell[name].detach() for name in names})
        self.head = model.decoder.decoder
        noise = torch.Generator().manual_seed(0)
        pause = SAMPLES * 3 // 4
        audio = torch.cat(
            [
                part
                for audio in speech()
                for part in (audio, 0.003 * torch.randn(pause, generator=noise))
            ]
        )
        chunks = audio[: len(audio) // self.window * self.window].view(-1, self.window)
        before = pad(chunks[:-1, -self.context :], (0, 0, 1, 0))
        with torch.inference_mode():
            x = torch.cat([before, chunks], 1)
            self.input = torch.stack([model.encoder(model.stft(row[None])) for row in x])[..., 0]
            self.own = torch.stack([whole(chunk[None], SAMPLES)[0, 0] for chunk in chunks])
        self.input = self.input.clone()
        if (self.run(fastrnn.Streamer) - self.own).abs().max() > 1e-3:
            raise SystemExit("silero-vad: not the model that this program knows")

    def run(self, make: Callable[..., Stream]) -> Tensor:
        stream = make(self.module, 1)
        y = torch.cat([stream(x).clone() for x in self.input])
        with torch.inference_mode():
            return self.head(y[:, :, None])[:, 0, 0].clone()

    def change(self, got: Tensor, wanted: Tensor) -> float:
        return (got - wanted).abs().max().item()


class Phonemes:
    """g2p_en. Each word's most likely phonemes, one after the other."""

    figure, decimals = "words whose phonemes change, in %", 2
    letters = {letter: k for k, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 3)}
    end_of_word, first, end = 2, 2, 3
    most = 20

    def __init__(self) -> None:
        path = folder("g2p_en") / "checkpoint20.npz"
        self.weights = {name: torch.from_numpy(each) for name, each in np.load(path).items()}
        self.encoder, self.decoder = (
            loaded(
                fastrnn.GRU,
                {
                    f"{long}_{side}_l0": self.weights[f"{part}_{short}_{side}"]
                    for long, short in (("weight", "w"), ("bias", "b"))
                    for side in ("ih", "hh")
                },
            )
            for part in ("enc", "dec")
        )
        self.module = self.decoder
        text = " ".join(topics.topics.values())
        self.words = sorted(set(re.findall(r"\b[a-z]{3,14}\b", text)))
        self.input = self.weights["dec_emb"][:, None]

    def run(self, make: Callable[..., Stream]) -> list[tuple[int, ...]]:
        encoder, decoder = make(self.encoder, 1), make(self.decoder, 1)
        return [self.spoken(word, encoder, decoder) for word in self.words]

    def spoken(self, word: str, encoder: Stream, decoder: Stream) -> tuple[int, ...]:
        encoder.reset()
        for letter in (*(self.letters[each] for each in word), self.end_of_word):
            encoder(self.weights["enc_emb"][letter : letter + 1])
        decoder.load_state(encoder.state)
        said, last = [], self.first
        while len(said) < self.most:
            y = decoder(self.weights["dec_emb"][last : last + 1])
            last = int((y @ self.weights["fc_w"].T + self.weights["fc_b"]).argmax())
            if last == self.end:
                break
            said.append(last)
        return tuple(said)

    def change(self, got: list, wanted: list) -> float:
        return 100 * statistics.fmean(a != b for a, b in zip(got, wanted, strict=True))


def times(streams: list[Stream], frames: Tensor, seconds: float) -> list[float]:
    """Median µs of a step of each, on the thread's own clock. Streams take turns, since machines
    drift."""
    frames = list(frames[:20, :1].contiguous())
    found = [[] for _ in streams]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for stream, own in zip(streams, found, strict=True):
            for _ in range(2):  # the first one brings the weights back to the cache
                start = time.thread_time()
                for x in frames:
                    stream(x)
            own.append((time.thread_time() - start) / len(frames))
    return [1e6 * statistics.median(own) for own in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5, help="of timing each model; 5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in (Embedding, Detector, Phonemes):
        model = kind()

        def made(module, batch: int, *, name: str) -> fastrnn.Streamer:
            return fastrnn.Streamer(module, batch, **OPTIONS[name])

        results = {
            name: model.run(lambda module, batch, name=name: made(module, batch, name=name))
            for name in OPTIONS
        }
        streams = [made(model.module, 1, name=name) for name in OPTIONS]
        took = times(streams, model.input, options.seconds)
        title = f"{kind.__doc__} {model.module}"
        table = Table(
            "weights", kind.figure, "µs a step", "of float32", title=title, box=box.SIMPLE
        )
        for name, each in zip(OPTIONS, took, strict=True):
            change = model.change(results[name], results["float32"])
            table.add_row(
                name, f"{change:.{kind.decimals}f}", f"{each:.1f}", f"{each / took[0]:.2f}"
            )
        console.print(table)


if __name__ == "__main__":
    main()
