"""What the baseline times, in the order of its value."""

from dataclasses import replace

from bench.cases import Case, Spec
from bench.suites import GPU, STEPS_ALONE

MODES = ("inference", "training", "forward")
ORDER = (
    *("flashrnn", "fastrnns", "deepspeech", "rnnt-pre", "wavernn", "tts", "gnmt", "ppo", "mt"),
    *("char-lm", "hydrology", "dprnn", "mt-wide", "rnnt-post", "gnmt-bi", "rnnoise-train"),
    *("silero", "cliff", "odd"),
)
SHAPES = tuple(next(case for case in GPU if case.name == name) for name in ORDER)
ONE_STEP = next(case for case in STEPS_ALONE if case.name == "silero-step")
# Of the first two.
VARIANTS = {
    "packed": {"job": "packed"},
    "bi": {"bidirectional": True},
    "2": {"layers": 2},
    "4": {"layers": 4},
}


def variant(case: Case, label: str, **change) -> Case:
    return replace(case, name=f"{case.name}-{label}", **change)


def specs(device: str = "cuda") -> list[Spec]:
    """Every row to be, the most telling first."""
    first = SHAPES[:2]
    variants = [variant(case, label, **to) for case in first for label, to in VARIANTS.items()]
    sweep = [variant(first[0], f"N={N}", N=N) for N in (8, 32, 64, 128, 256, 2)]
    sweep += [variant(first[0], f"T={T}", T=T) for T in (256, 512, 2048)]
    half, tensor_cores = ("float16", "bfloat16"), ("float16", "bfloat16", "tf32")
    rest = (*SHAPES[9:], ONE_STEP)
    order = [(first, ("LSTM",), (*tensor_cores, "float32"))]
    order += [(SHAPES[2:9], ("LSTM", "GRU"), tensor_cores), (variants, ("LSTM",), half)]
    order += [(first, ("GRU", "RNN"), half), (rest, ("LSTM", "GRU"), tensor_cores)]
    order += [(sweep, ("LSTM",), half), (variants, ("LSTM",), ("tf32", "float32"))]
    order += [(first, ("GRU", "RNN"), ("tf32", "float32"))]
    order += [((*SHAPES[2:], ONE_STEP), ("LSTM", "GRU"), ("float32",))]
    return [
        Spec(case, cell, mode, dtype, device=device)
        for cases, cells, dtypes in order
        for case in cases
        for cell in cells
        if case.has(cell)
        for dtype in dtypes
        for mode in MODES
    ]
