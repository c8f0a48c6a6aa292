"""What is timed: the cases, the suites made of them, and the specification of one row."""

from dataclasses import dataclass, replace

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # class name in torch.nn -> gates; RNN is tanh, its default
CELLS = tuple(GATES)
STEPS = tuple(f"{cell}Cell" for cell in CELLS)  # modules of a single time step
MODES = ("inference", "training")


@dataclass(frozen=True)
class Case:
    """T time steps of a batch of N through `layers` layers."""

    name: str
    T: int
    N: int
    input_size: int
    hidden_size: int
    layers: int
    user: str  # who runs such a model

    def shape(self) -> str:
        return f"{self.T}, {self.N}, {self.input_size}, {self.hidden_size}, {self.layers}"


CASES = (
    Case("stream", 1, 1, 128, 256, 1, "a speech front end or an agent that gets one frame a call"),
    Case("vad", 32, 1, 64, 128, 1, "voice activity detection on one second of audio"),
    Case("rnnoise", 200, 1, 128, 256, 1, "noise suppression on two seconds of one speaker"),
    Case("text", 100, 32, 128, 256, 1, "a sentence classifier or tagger on a batch of sentences"),
    Case(
        "rl", 64, 64, 256, 256, 1, "the memory of a reinforcement learning policy, 64 environments"
    ),
    Case("ts", 96, 64, 16, 64, 2, "a forecaster on four days of quarter-hourly sensor readings"),
    Case("lm", 35, 20, 650, 650, 2, "the medium word language model of Zaremba et al. 2014"),
    Case(
        "big", 50, 64, 1024, 1024, 1, "a layer of a speech recogniser or translator being trained"
    ),
)


@dataclass(frozen=True)
class Spec:
    """One row of the table, before it is measured."""

    case: Case
    cell: str  # of CELLS or, for a case of one time step and layer, STEPS
    mode: str  # of MODES
    dtype: str = "float32"  # or "float64"
    threads: int = 1

    def flops(self) -> float:
        """Of the matrix products in one call. Training counts three times inference: the backward
        pass has one product for the gradient of what went in and one for that of the weights."""
        case, hidden = self.case, self.case.hidden_size
        inputs = case.input_size + (case.layers - 1) * hidden  # of all layers together
        gates = GATES[self.cell.removesuffix("Cell")]
        forward = 2 * case.T * case.N * gates * hidden * (inputs + case.layers * hidden)
        return float(forward * (3 if self.mode == "training" else 1))

    def within(self, flops: float) -> "Spec":
        """The same with as many time steps as `flops` allow, but at least 8 of those it has."""
        steps = max(8, int(self.case.T * flops / self.flops()))
        return replace(self, case=replace(self.case, T=min(self.case.T, steps)))


@dataclass(frozen=True)
class Suite:
    """A named selection. `threads`: None stands for all the cores of the machine."""

    about: str
    cases: tuple[Case, ...]
    threads: tuple[int | None, ...]
    seconds: float  # of timing a row, warm-up and verification not counted
    cells: tuple[str, ...] = CELLS


SUITES = {
    "quick": Suite("every case on one thread, under five minutes on two cores", CASES, (1,), 1.5),
    "cpu": Suite(
        "every case on one thread and on all cores, timed for longer", CASES, (1, None), 6
    ),
    "overhead": Suite(
        "what a call costs besides arithmetic, of the layers and of the cells",
        (Case("call", 1, 1, 8, 8, 1, "anyone whose network is small and is called step by step"),),
        (1,),
        3,
        CELLS + STEPS,
    ),
}


def select(
    suite: Suite,
    *,
    cores: int,
    names: str = "",
    cells: tuple[str, ...] = (),
    modes: tuple[str, ...] = MODES,
    dtype: str = "float32",
    threads: tuple[int, ...] = (),
) -> list[Spec]:
    """The rows of `suite`, restricted to the cases whose name contains one of the words in `names`
    (separated by commas; "" is every case). `cells` and `threads` replace those of the suite."""
    words = [word for word in names.split(",") if word] or [""]
    counts = threads or sorted({count or cores for count in suite.threads})
    return [
        Spec(case, cell, mode, dtype, count)
        for count in counts
        for mode in modes
        for cell in cells or suite.cells
        for case in suite.cases
        if any(word in case.name for word in words)
    ]
