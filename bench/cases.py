"""What can be timed: a case is a model of some size, a spec one row of a table."""

from dataclasses import dataclass, replace

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # class name in torch.nn -> gates; RNN is tanh, its default
CELLS = tuple(GATES)
STEPS = tuple(f"{cell}Cell" for cell in CELLS)  # modules of a single time step
MODES = ("inference", "forward", "training")  # no_grad; graph recorded; gradients of everything
# tf32: float32 tensors whose products a GPU may round to TF32, which "float32" forbids.
DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")
BYTES = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}


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
    bidirectional: bool = False
    job: str = "layer"  # of contenders.JOBS: what is computed
    cells: tuple[str, ...] = ()  # those that such models have; () is those of the suite

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def has(self, cell: str) -> bool:
        """Whether it makes sense with `cell`: a module of one step takes one step of one layer."""
        if cell in STEPS:
            return self.job == "layer" and self.T == self.layers == self.directions == 1
        return cell in (self.cells or CELLS)

    def shape(self) -> str:
        text = f"{self.T}, {self.N}, {self.input_size}, {self.hidden_size}, {self.layers}"
        return text + (" bi" if self.bidirectional else "")

    def lengths(self) -> list[int]:
        """Of the rows, for the jobs whose rows differ: evenly from 40 % of T up to T, unsorted."""
        low, span = max(1, int(0.4 * self.T)), max(1, self.N - 1)
        even = [low + round((self.T - low) * n / span) for n in range(self.N)]
        return even[::2] + even[1::2][::-1]

    def steps(self) -> int:
        """Time steps of all rows together that have to be computed."""
        return sum(self.lengths()) if self.job in ("lengths", "packed") else self.T * self.N


@dataclass(frozen=True)
class Spec:
    """One row of the table, before it is measured."""

    case: Case
    cell: str  # of CELLS or, for a case of one time step and layer, STEPS
    mode: str  # of MODES
    dtype: str = "float32"  # of DTYPES
    threads: int = 1
    device: str = "cpu"  # or "cuda"

    @property
    def gates(self) -> int:
        return GATES[self.cell.removesuffix("Cell")]

    def flops(self) -> float:
        """Of the matrix products in one call. Training counts three times inference: the backward
        pass has one product for the gradient of what went in and one for that of the weights."""
        case, width = self.case, self.case.hidden_size * self.case.directions
        inputs = case.input_size + (case.layers - 1) * width  # of all layers together
        forward = 2 * case.steps() * self.gates * width * (inputs + case.layers * case.hidden_size)
        return float(forward * (3 if self.mode == "training" else 1))

    def within(self, flops: float) -> "Spec":
        """The same with as many time steps as `flops` allow, but at least 8 of those it has."""
        steps = max(8, int(self.case.T * flops / self.flops()))
        return replace(self, case=replace(self.case, T=min(self.case.T, steps)))
