"""The suites: which cases, and how they are timed unless an option says otherwise."""

from dataclasses import dataclass, replace
from functools import partial

from bench.cases import CELLS, PUBLISHED, STEPS, Case, Spec

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

lstm, gru = partial(Case, cells=("LSTM",)), partial(Case, cells=("GRU",))
# Sizes from the sources named; where a source gives no T or N, what its task implies.
GPU = (
    Case("fastrnns", 100, 64, 512, 512, 1, "fastrnns, PyTorch's own benchmark of LSTMs"),
    Case("fastrnns-packed", 100, 64, 512, 512, 1, "the same, sentences packed", job="packed"),
    Case("flashrnn", 1024, 16, 768, 768, 1, "FlashRNN's headline: an LSTM for long contexts"),
    Case("char-lm", 150, 64, 256, 256, 1, "DeepBench: a character language model"),
    Case("mt", 25, 64, 1024, 1024, 1, "DeepBench: machine translation"),
    Case("mt-wide", 25, 32, 2048, 2048, 1, "DeepBench: machine translation, large weights"),
    gru("speaker-id", 1500, 32, 1024, 1024, 1, "DeepBench: who speaks, from 15 s of audio"),
    gru("deepspeech", 375, 32, 1536, 1536, 1, "DeepBench: a layer of DeepSpeech 2"),
    lstm("rnnt-pre", 557, 32, 240, 1024, 2, "MLPerf RNN-T: encoder, before frames are stacked"),
    lstm("rnnt-post", 278, 32, 2048, 1024, 3, "MLPerf RNN-T: encoder, after it"),
    lstm("gnmt-bi", 50, 128, 1024, 1024, 1, "GNMT: first layer of the encoder", True, "packed"),
    lstm("gnmt", 50, 128, 1024, 1024, 3, "GNMT: the layers above it", job="packed"),
    lstm("dprnn", 100, 320, 128, 128, 1, "DPRNN-TasNet: speech separation, 4 s chunks", True),
    gru("wavernn", 1375, 32, 512, 512, 1, "WaveRNN: a vocoder in training"),
    gru("rnnoise-train", 2000, 128, 256, 256, 3, "RNNoise: noise suppression in training"),
    lstm("hydrology", 365, 256, 30, 128, 1, "rainfall to runoff: a year of days, 256 basins"),
    lstm("tts", 200, 1, 512, 256, 1, "Kokoro: speech synthesis of one sentence", True),
    Case("ppo", 32, 2048, 512, 512, 1, "PufferLib, sample-factory: PPO on 2048 environments"),
    lstm("silero", 500, 1, 128, 128, 1, "voice activity detection on a recording"),
    lstm("cliff", 2058, 62, 16, 168, 1, "nobody: probes where cuDNN changes its algorithm"),
    lstm("odd", 100, 64, 125, 320, 1, "sizes that are no multiple of anything"),
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

# Networks that people know by name. Sizes are those of their code or paper, and T and N are what it
# trains on or gets at once.
bi = partial(Case, bidirectional=True, cells=("LSTM",))
last = {"job": "last", "modes": ("training",)}
MODELS = (
    bi("pyannote", 589, 32, 60, 128, 4, "pyannote.audio: who speaks when, 10 s windows"),
    bi("open-unmix", 255, 16, 512, 256, 3, "Open-Unmix: instruments apart, 6 s of music"),
    bi("madmom", 3000, 1, 266, 25, 3, "madmom: beats of 30 s of music"),
    bi("onsets", 640, 8, 768, 384, 1, "Onsets and Frames: notes of 20 s of piano"),
    bi("tacotron", 150, 32, 512, 256, 1, "Tacotron 2: the letters of a sentence"),
    bi("crnn", 26, 64, 512, 256, 2, "CRNN: a word in an image"),
    bi("doctr", 32, 32, 512, 128, 2, "docTR: the same"),
    bi("lample", 25, 10, 150, 100, 1, "Lample et al. 2016: names in a sentence"),
    bi("sketch", 250, 100, 5, 256, 1, "Sketch-RNN: the strokes of a drawing"),
    gru("dcase", 156, 48, 128, 128, 2, "the DCASE baseline: sounds in 10 s", bidirectional=True),
    gru("translate", 10, 32, 128, 128, 1, "PyTorch's tutorial on translation"),
    lstm("denoiser", 625, 1, 768, 768, 2, "Denoiser: 10 s of a noisy speaker"),
    lstm("resemblyzer", 160, 1, 40, 256, 3, "Resemblyzer: whose voice, 1.6 s"),
    lstm("deepar", 192, 32, 25, 40, 2, "DeepAR of GluonTS: hours of a week, and the next day"),
    lstm("tft", 168, 64, 160, 160, 1, "Temporal Fusion Transformer: a week of hours"),
    lstm("sleep", 20, 15, 2048, 128, 1, "TinySleepNet: stages of sleep"),
    lstm("r2d2", 120, 64, 531, 512, 1, "R2D2: replayed sequences of an agent"),
    lstm("impala", 20, 32, 266, 256, 1, "IMPALA: a rollout of 32 actors"),
    lstm("rainfall", 365, 256, 32, 256, 1, "NeuralHydrology: today's runoff from a year", **last),
    Case("names", 7, 1, 58, 128, 1, "PyTorch's tutorial on names", cells=("RNN",), **last),
)

# Calls in which an earlier fastrnn was slower than torch.nn or another library. More of these are
# in other suites: `stream` and `rl` of CPU, `stream-proj` of VARIANTS, and the cells of `overhead`.
chunk = partial(Case, N=1, layers=1, user="who gets a stream in chunks", modes=("inference",))
tiny = partial(Case, T=50, N=1024, layers=1, user="who fits thousands of short series")
loop = partial(Case, layers=1, user="whose decoder feeds on its own output", job="loop")
twice = partial(Case, layers=1, user="who bounds the slope of a critic or a model of physics")
func = partial(Case, layers=1, user="who writes in the style of JAX", job="func.grad")
each = partial(Case, layers=1, user="who trains with differential privacy", job="per sample")
slope = partial(Case, layers=1, user="who asks which input matters", job="input gradient")
CORNERS = (
    *(chunk(f"chunk-{T}", T, input_size=80, hidden_size=512) for T in (2, 4, 16)),
    chunk("chunk-2-wide", 2, input_size=1024, hidden_size=1024),
    *(tiny(f"tiny-{H}", input_size=H, hidden_size=H, modes=("training",)) for H in (1, 2, 4)),
    loop("loop-small", 50, 1, 8, 8, modes=("training",)),
    loop("loop", 20, 32, 64, 128, modes=("training",)),
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
        "short chunks, tiny layers, loops over cells, and gradients of other kinds", CORNERS
    ),
    "stream": Suite(
        "the latency of one time step, also with small weights",
        STREAM,
        cells=("LSTM", "GRU"),
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
