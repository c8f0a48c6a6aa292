"""Spoken digits, made by espeak-ng on the spot: some hundred voices, five accents of English.

espeak-ng (GPL-3) is a formant synthesizer, the speaker of many screen readers. The package
espeakng-loader carries it as a shared library. Voices of one family ("f1", "f2") are on the same
side of the split. Every fifth family is for the test.
"""

import ctypes
import random
import re
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import torch
from torch import Tensor, nn

RATE = 22_050  # samples a second
ACCENTS = ("en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-029")
WORDS = "zero one two three four five six seven eight nine".split()
_SYNCHRONOUS, _SPEED, _PITCH, _UTF8 = 2, 1, 3, 1  # speak_lib.h


class Utterance(NamedTuple):
    audio: Tensor  # (samples,) float32 in [-1, 1]
    digits: list[int]
    voice: str


class Synthesizer:
    """espeak-ng through its C interface (speak_lib.h)."""

    def __init__(self):
        data = Path(espeakng_loader.get_data_path())
        self.voices = sorted(path.name for path in (data / "voices" / "!v").iterdir())
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        if self.library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0) != RATE:
            raise RuntimeError("espeak-ng did not start")
        self._pieces: list[bytes] = []

        @ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        def receive(samples, count, events) -> int:
            if samples:
                self._pieces.append(ctypes.string_at(samples, 2 * count))
            return 0

        self._receive = receive  # the library keeps the address only
        self.library.espeak_SetSynthCallback(receive)

    def speak(self, text: str, voice: str, accent: str, speed: int, pitch: int) -> Tensor:
        """Audio (samples,); speed in words a minute, pitch in 0 ... 100."""
        if self.library.espeak_SetVoiceByName(f"{accent}+{voice}".encode()):
            raise RuntimeError(f"espeak-ng has no voice {accent}+{voice}")
        self.library.espeak_SetParameter(_SPEED, speed, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        self._pieces.clear()
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        audio = torch.frombuffer(bytearray(b"".join(self._pieces)), dtype=torch.int16)
        return audio.float() / 32768


def family(voice: str) -> str:
    return re.sub(r"\d", "", voice)


def utterances(count: int, test: bool, seed: int) -> list[Utterance]:
    """Two to five digits each, with silence before and after, by voices of one side, in white noise
    14 to 30 dB below them."""
    rng = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    synthesizer = Synthesizer()
    held_out = sorted({family(voice) for voice in synthesizer.voices})[::5]
    voices = [voice for voice in synthesizer.voices if (family(voice) in held_out) == test]
    made = []
    for _ in range(count):
        digits = [rng.randrange(10) for _ in range(rng.randint(2, 5))]
        voice, text = rng.choice(voices), " ".join(WORDS[digit] for digit in digits)
        pitch, speed = rng.randint(20, 80), rng.randint(110, 180)
        audio = synthesizer.speak(text, voice, rng.choice(ACCENTS), speed, pitch)
        audio = nn.functional.pad(audio / audio.std() / 10, (RATE // 10, RATE // 3))
        level = 10 ** -rng.uniform(1.7, 2.5)
        audio = audio + level * torch.randn(len(audio), generator=noise)
        made.append(Utterance(audio, digits, voice))
    return made
