"""What the baseline times, in the order of its value."""

from dataclasses import dataclass, replace

import torch

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}


@dataclass(frozen=True)
class Case:
    """One layer stack on one size. `packed`: lengths fall evenly from T to T / 2."""

    name: str
    cell: str  # LSTM, GRU or RNN
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    directions: int = 1
    packed: bool = False
    dtype: str = "fp16"


# Sizes that others train, serve or time; where a paper gives a range, its middle.
SHAPES = (
    Case("flashrnn", "LSTM", 1024, 16, 768, 768),
    Case("fastrnns", "LSTM", 100, 64, 512, 512),
    Case("deepspeech", "GRU", 375, 32, 1024, 1024),
    Case("rnnt-pre", "LSTM", 557, 32, 240, 1024, layers=2),
    Case("wavernn", "GRU", 1375, 32, 512, 512),
    Case("tts", "LSTM", 200, 1, 512, 256, directions=2),
    Case("gnmt", "LSTM", 50, 128, 1024, 1024, layers=3, packed=True),
    Case("ppo", "LSTM", 16, 2048, 512, 512),
    Case("deepbench-1024", "LSTM", 25, 64, 1024, 1024),
    Case("deepbench-256", "LSTM", 150, 16, 256, 256),
    Case("hydrology", "LSTM", 365, 256, 30, 128),
    Case("dprnn", "LSTM", 100, 320, 128, 128, directions=2),
    Case("deepbench-2048", "LSTM", 25, 64, 2048, 2048),
    Case("rnnt-post", "LSTM", 278, 32, 2048, 1024, layers=3),
    Case("gnmt-bi", "LSTM", 50, 128, 1024, 1024, directions=2, packed=True),
    Case("rnnoise", "GRU", 2000, 128, 256, 256, layers=3),
    Case("deepbench-512", "LSTM", 25, 64, 512, 512),
    Case("ppo-gru", "GRU", 16, 2048, 512, 512),
    Case("vad", "LSTM", 500, 1, 128, 128),
    Case("vad-step", "LSTM", 1, 1, 128, 128),
    Case("small-h-cliff", "LSTM", 2058, 62, 16, 168),
    Case("odd", "LSTM", 100, 64, 125, 320),
)
# Of the first two.
VARIANTS = (
    {"packed": True},
    {"directions": 2},
    {"layers": 2},
    {"layers": 4},
    {"cell": "GRU"},
    {"cell": "RNN"},
)


def cases() -> list[Case]:
    """Every case, the most telling first."""
    first = SHAPES[:2]
    variants = [replace(shape, **change) for shape in first for change in VARIANTS]
    sweep = [replace(SHAPES[0], B=batch) for batch in (8, 32, 64, 128, 256, 2)]
    sweep += [replace(SHAPES[0], T=steps) for steps in (256, 512, 2048)]
    order = [(first, ("fp16", "bf16", "tf32", "fp32"))]
    order += [(SHAPES[2:12], ("fp16", "bf16", "tf32")), (variants, ("fp16", "bf16"))]
    order += [(SHAPES[12:], ("fp16", "bf16", "tf32")), (sweep, ("fp16", "bf16"))]
    order += [(variants, ("tf32",)), (SHAPES[2:], ("fp32",)), (variants, ("fp32",))]
    return [
        replace(shape, dtype=dtype)
        for shapes, dtypes in order
        for shape in shapes
        for dtype in dtypes
    ]
