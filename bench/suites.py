"""The suites: which cases, and how they are timed unless an option says otherwise."""

from dataclasses import dataclass, replace
from functools import partial

from bench.cases import CELLS, PUBLISHED, STEPS, Case, Spec
from bench.networks import GPU, MODELS, lstm

CPU = (
    Case("stream", 1, 1, 128, 256, 1, "a speech front end or an agent that gets one frame a call"),
    Case("vad", 32, 1, 64, 128, 1, "voice activity detection on one second of audio"),
    Case("rnnoise", 200, 1, 128, 256, 1, "noise suppression on two seconds of one speaker"),
    Case("text", 100, 32, 128, 256, 1, "a sentence classifier or tagger on a batch of sentences"),
    Case("rl", 64, 64, 256, 256, 1, "a reinforcement learning policy in 64 environments"),
    Case("ts", 96, 64, 16, 64, 2, "a forecaster on four days of quarter-hourly sensor readings"),
    Case("lm", 35, 20, 650, 650, 2, "the medium word language model of Zaremba et al. 2014"),
    Case("big", 50, 64, 1024, 1024, 1, "a layer of a speech recogniser being trained"),
)

reset = partial(Case, job="reset", cells=("LSTM", "GRU"))
lengths = partial(Case, job="lengths")
FEATURES = (
    reset("rl-reset", 64, 64, 256, 256, 1, "a policy whose environments end inside a rollout"),
    reset("rl-long", 256, 16, 128, 256, 1, "the same on long rollouts of few environments"),
    lengths("text-lengths", 100, 32, 128, 256, 1, "sentences of different lengths, unsorted"),
    lengths("tagger-lengths", 60, 64, 100, 128, 1, "a bidirectional tagger on such", True),
    lstm("states", 100, 32, 128, 256, 1, "anyone who reads or trains cell states", job="states"),
)

# The cells of torch.nn, whose built-in layer tells what a cell as a function costs; and published
# ones, against a loop and the libraries that have them.
SIZES = tuple((N, H) for N in (1, 32) for H in (16, 128, 256, 512))
FUNCTIONS = tuple(
    Case(f"{N} x {H}", 100, N, H, H, 1, "anyone whose cell is not in torch.nn", job="function")
    for N, H in SIZES
)
published = partial(Case, job="published", cells=tuple(PUBLISHED))
OF_ZOO = (
    *(published(f"zoo {N} x {H}", 100, N, H, H, 1, "who took it from a paper") for N, H in SIZES),
    Case(
        "zoo 8 steps", 8, 1, 128, 128, 1, "nobody: as many as torch.compile unrolls in a minute",
        job="published", cells=("PeepholeLSTM",),
    ),
)  # fmt: skip

# Calls in which an earlier fastrnn was slower than torch.nn or another library. More of these are
# in other suites: `stream` and `rl` of CPU, `stream-proj` of VARIANTS, and the cells of `overhead`.
short = partial(Case, N=1, layers=1, user="who calls with few time steps", modes=("inference",))
tiny = partial(Case, T=50, N=1024, layers=1, user="who fits thousands of short series")
loop = partial(Case, layers=1, user="whose decoder feeds on its own output", job="loop")
twice = partial(Case, layers=1, user="who bounds the slope of a critic or a model of physics")
func = partial(Case, layers=1, user="who writes in the style of JAX", job="func.grad")
each = partial(Case, layers=1, user="who trains with differential privacy", job="per sample")
slope = partial(Case, layers=1, user="who asks which input matters", job="input gradient")
CORNERS = (
    *(short(f"chunk-{T}", T, input_size=80, hidden_size=512) for T in (2, 4, 16)),
    short("chunk-2-wide", 2, input_size=1024, hidden_size=1024),
    *(tiny(f"tiny-{H}", input_size=H, hidden_size=H, modes=("training",)) for H in (1, 2, 4)),
    loop("loop-small", 50, 1, 8, 8, modes=("training",)),
    loop("loop", 20, 32, 64, 128, modes=("training",)),
    Case(
        "step-wide",
        1,
        16,
        256,
        1024,
        1,
        "an actor or a decoder of a thousand units",
        modes=("training",),
    ),
    Case("wide", 20, 256, 300, 512, 1, "a tagger of large batches with vectors of words"),
    *(
        make(f"{name}{size}", *sizes, modes=("training",))
        for name, make in (
            ("penalty", partial(twice, job="penalty")),
            ("loss-penalty", partial(twice, job="loss and penalty")),
            ("func", func),
            ("samples", each),
        )
        for size, sizes in (("-small", (16, 16, 8, 16)), ("", (50, 32, 64, 128)))
    ),
    twice("loss-penalty-wide", 50, 32, 128, 256, job="loss and penalty", modes=("training",)),
    slope("input-gradient", 50, 32, 128, 256, modes=("training",)),
    slope("input-gradient-wide", 20, 64, 512, 512, modes=("training",)),
)

# Each size with a loss on the last output, and with one on all outputs.
LAST = tuple(
    case
    for T, user in (
        (100, "a classifier of sentences by their last state"),
        (200, "a forecaster that reads a week of hours and says the next"),
        (2000, "a classifier of recordings, sample by sample"),
    )
    for case in (
        Case(f"last-{T}", T, 32, 64, 128, 1, user, job="last"),
        Case(f"all-{T}", T, 32, 64, 128, 1, "the same where every output has a label"),
    )
)

STEPS_ALONE = (
    Case("keyword", 1, 1, 40, 64, 1, "a wake word on a microcontroller-sized network"),
    Case("silero-step", 1, 1, 128, 128, 1, "voice activity detection, a window a call"),
    Case("front-end", 1, 1, 128, 256, 1, "a speech front end, 100 frames a second"),
    Case("denoise-step", 1, 1, 128, 256, 3, "noise suppression during a call: three layers"),
    Case("controller", 1, 1, 32, 512, 1, "a robot's policy in a loop of a kilohertz"),
)
STREAM = (
    *(replace(case, job="step") for case in STEPS_ALONE),
    *(
        replace(case, name=f"{case.name}-small", job="small step")
        for case in STEPS_ALONE
        if case.hidden_size >= 256
    ),
)

chunk = partial(Case, job="chunk", modes=("inference",))
CHUNKS = (
    chunk("amp", 64, 1, 1, 40, 1, "a guitar amplifier as a plug-in: buffers of 64 samples"),
    chunk("speakers", 32, 1, 64, 128, 1, "who speaks, asked every half second"),
    *(
        chunk(f"captions-{T}", T, 1, 80, 512, 1, "captions of live speech, every few frames")
        for T in (2, 4, 16)
    ),
    chunk("rnnt-live", 2, 1, 1024, 1024, 2, "an encoder of RNN-T, two frames at a time"),
    lstm(
        "deepspeech-live", 16, 1, 2048, 2048, 1, "Mozilla's DeepSpeech, every 320 ms", job="chunk"
    ),
)


def axis(name: str, values: tuple[int, ...], user: str) -> tuple[Case, ...]:
    """Cases that differ in one of T, N and H (input and hidden size) from 32, 8, 256."""
    sizes = [{"T": 32, "N": 8, "H": 256} | {name: value} for value in values]
    return tuple(Case(f"{name}={s[name]}", s["T"], s["N"], s["H"], s["H"], 1, user) for s in sizes)


SCALING = (
    *axis("T", (16, 64, 256, 1024, 4096, 16384), "how time and memory grow with the sequence"),
    *axis("N", (1, 4, 16, 64, 256, 1024, 4096), "how they grow with the batch"),
    *axis("H", (16, 64, 256, 1024, 4096), "how they grow with the layer"),
)

LAYERS = tuple(
    Case(f"{'bi-' if bi else ''}{n}", 64, 16, 256, 256, n, f"a stack of {n}", bi)
    for bi in (False, True)
    for n in (1, 2, 4, 8)
)


VARIANTS = (
    *(replace(case, name=f"{case.name}-bi", bidirectional=True) for case in CPU),
    *(
        replace(case, name=f"{case.name}-packed", job="packed", shortest=1 / 3)
        for case in CPU
        if case.T > 1
    ),
    *(replace(case, name=f"{case.name}-proj", proj_size=case.hidden_size // 2) for case in CPU),
)


@dataclass(frozen=True)
class Suite:
    """A named selection. `threads`: None stands for all the cores of the machine. `extra` names
    contenders that are otherwise timed only when asked for."""

    about: str
    cases: tuple[Case, ...]
    threads: tuple[int | None, ...] = (1,)
    seconds: float = 3  # of timing a row, warm-up and verification not counted
    cells: tuple[str, ...] = CELLS
    modes: tuple[str, ...] = ("inference", "training")
    dtypes: tuple[str, ...] = ("float32",)
    device: str = "cpu"
    extra: tuple[str, ...] = ()
    memory: bool = False  # whether the peak of memory is measured, too
    table: str = ""  # under which name its rows are reported; "": its own


SUITES = {
    "quick": Suite(
        "every case on one thread, under five minutes on two cores", CPU, seconds=1, table="cpu"
    ),
    "cpu": Suite(
        "every case on one thread and on all cores, timed for longer",
        CPU,
        (1, None),
        6,
        memory=True,
    ),
    "variants": Suite(
        "the same models in two directions, on packed sequences, and LSTMs with a projection",
        VARIANTS,
        extra=("fastrnn padded",),
    ),
    "models": Suite("networks that people know by name", MODELS),
    "bfloat16": Suite(
        "the same models in bfloat16, and ours in float32 on the same numbers",
        CPU,
        dtypes=("bfloat16",),
        extra=("fastrnn float32",),
    ),
    "rounded": Suite(
        "the same models in float32, also where torch allows products of bfloat16",
        tuple(replace(case, name=f"{case.name}-rounded") for case in CPU[1:]),
        extra=("fastrnn rounded", "torch.nn rounded"),
    ),
    "gpu": Suite(
        "published models and benchmarks, in the precisions of a GPU",
        GPU,
        cells=("LSTM", "GRU"),
        dtypes=("float16", "bfloat16", "tf32", "float32"),
        device="cuda",
        extra=("fastrnn cuda", "fastrnn triton", "fastrnn graph", "torch.nn graph", "haste"),
    ),
    "features": Suite("what torch.nn has only work-arounds for", FEATURES),
    "cells": Suite(
        "cells that are Python functions: those of torch.nn, and those of the zoo",
        FUNCTIONS + OF_ZOO,
        cells=CELLS + tuple(PUBLISHED),
    ),
    "last-step": Suite(
        "training with a loss on the last output, and with one on all",
        LAST,
        (1, None),
        modes=("training",),
    ),
    "corners": Suite(
        "short chunks, tiny layers, loops over cells, and gradients of other kinds",
        CORNERS,
        cells=CELLS + STEPS,
    ),
    "stream": Suite(
        "the latency of one time step, also with small weights",
        STREAM,
        modes=("inference",),
    ),
    "chunks": Suite(
        "a stream that comes in chunks of a few time steps, the state carried on",
        CHUNKS,
        modes=("inference",),
    ),
    "overhead": Suite(
        "what a call costs besides arithmetic, of the layers and of the cells",
        (Case("call", 1, 1, 8, 8, 1, "anyone whose network is small and is called step by step"),),
        cells=CELLS + STEPS,
    ),
    "scaling": Suite("T, N and H, one at a time", SCALING, cells=("LSTM", "GRU"), memory=True),
    "layers": Suite("stacks of 1 to 8 layers, in one direction and in two", LAYERS),
}


def select(
    suite: Suite,
    *,
    cores: int,
    names: str = "",
    cells: tuple[str, ...] = (),
    modes: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = (),
    threads: tuple[int, ...] = (),
    device: str = "",
) -> list[Spec]:
    """The rows of `suite`, restricted to the cases whose name contains one of the words in `names`
    (separated by commas; "" is every case). The other arguments replace what the suite says; a
    case that lists cells of its own has no others."""
    words = [word for word in names.split(",") if word] or [""]
    counts = threads or sorted({count or cores for count in suite.threads})
    return [
        Spec(case, cell, mode, dtype, count, device or suite.device)
        for count in counts
        for dtype in dtypes or suite.dtypes
        for mode in modes or suite.modes
        for cell in cells or suite.cells
        for case in suite.cases
        if any(word in case.name for word in words) and case.has(cell) and mode in case.modes
    ]
