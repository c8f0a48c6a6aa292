"""What can be timed: a case is a model of some size, a spec one row of a table."""

from dataclasses import dataclass, replace

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # class name in torch.nn -> gates; RNN is tanh, its default
CELLS = tuple(GATES)
STEPS = tuple(f"{cell}Cell" for cell in CELLS)  # modules of a single time step


@dataclass(frozen=True)
class Published:
    """A cell that torch.nn does not have."""

    gates: int  # of its products, with the input and with h
    params: tuple[str, ...] = ()  # vectors of H, which come after weights and biases
    bias: bool = True


GAINS = tuple(f"{of}_{gate}" for of in "xu" for gate in "ifgo")
PUBLISHED = {
    "PeepholeLSTM": Published(4, ("w_i", "w_f", "w_o")),
    "LayerNormLSTM": Published(4, (*GAINS, "w_c", "b_i", "b_f", "b_g", "b_o", "b_c"), bias=False),
    "LiGRU": Published(2),
    "UGRNN": Published(2),
    "CfC": Published(4),
}


def gates_of(cell: str) -> int:
    """Of a cell's products, by a name in CELLS, STEPS or PUBLISHED."""
    if cell in PUBLISHED:
        return PUBLISHED[cell].gates
    return GATES[cell.removesuffix("Cell")]


MODES = ("inference", "forward", "training")  # no_grad; graph recorded; gradients of everything
# tf32: float32 tensors whose products a GPU may round to TF32, which "float32" forbids.
DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")
BYTES = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2}
RAGGED = ("lengths", "packed")  # jobs whose rows end at lengths of their own
STREAMS = ("step", "small step", "chunk")  # jobs whose state goes on from call to call
# Of jobs that make other gradients than training: how many times the products of inference they
# need. A gradient of the input takes two, forward and back. A penalty on it takes two more: of that
# gradient, what goes on to the next step, and the weights. Backward takes the last two.
PRODUCTS = {"input gradient": 2, "penalty": 6, "loss and penalty": 6}


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
    modes: tuple[str, ...] = MODES  # in which the suite may time it
    proj_size: int = 0  # of an LSTM's h, 0 where it is not projected
    shortest: float = 0.4  # row, as a share of T, where rows differ

    @property
    def streams(self) -> bool:
        """Whether a call takes the next T time steps, and the state is carried on."""
        return self.job in STREAMS

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def has(self, cell: str) -> bool:
        """Whether it makes sense with `cell`: a module of one step takes one step of one layer,
        and only an LSTM has a projection."""
        if self.proj_size and cell != "LSTM":
            return False
        if cell in STEPS:
            return self.job == "layer" and self.T == self.layers == self.directions == 1
        return cell in (self.cells or CELLS)

    @property
    def output_size(self) -> int:
        """Of h, which one direction gives to the next step and layer."""
        return self.proj_size or self.hidden_size

    def lengths(self) -> list[int]:
        """Of the rows of RAGGED jobs: evenly from `shortest` to T, unsorted. One row has T."""
        low = max(1, int(self.shortest * self.T)) if self.N > 1 else self.T
        span = max(1, self.N - 1)
        even = [low + round((self.T - low) * n / span) for n in range(self.N)]
        return even[::2] + even[1::2][::-1]

    def steps(self) -> int:
        """Time steps of all rows together that have to be computed."""
        return sum(self.lengths()) if self.job in RAGGED else self.T * self.N

    def filled(self) -> float:
        """The share of T * N that they are."""
        return self.steps() / (self.T * self.N)


def shape(sizes) -> str:
    """Of a case or of a row of results, for a table."""
    text = f"{sizes.T}, {sizes.N}, {sizes.input_size}, {sizes.hidden_size}, {sizes.layers}"
    text += " bi" if sizes.directions == 2 else ""
    return text + (f" proj {sizes.proj_size}" if sizes.proj_size else "")


def recurrent(sizes, gates: int) -> int:
    """Weights of one layer and direction that each step needs, those of h and of its projection;
    `sizes` as above."""
    hidden, projected = sizes.hidden_size, sizes.proj_size
    return hidden * (gates * (projected or hidden) + projected)


@dataclass(frozen=True)
class Spec:
    """One row of the table, before it is measured."""

    case: Case
    cell: str  # of CELLS or PUBLISHED or, for a case of one time step and layer, STEPS
    mode: str  # of MODES
    dtype: str = "float32"  # of DTYPES
    threads: int = 1
    device: str = "cpu"  # or "cuda"

    @property
    def gates(self) -> int:
        return gates_of(self.cell)

    def backward(self) -> bool:
        """Whether a backward pass has to multiply at every step. Where the loss is of the last
        output, gradients fade away, and products with zeros need not be made."""
        return self.mode == "training" and self.case.job != "last"

    def flops(self) -> float:
        """Of the matrix products in one call. Training counts three times inference: the backward
        pass has one product for the gradient of what went in and one for that of the weights."""
        forward = 2 * self.case.steps() * sum(self.weights())
        return float(forward * PRODUCTS.get(self.case.job, 3 if self.backward() else 1))

    def weights(self) -> tuple[int, int]:
        """Entries of the matrices of all layers: those that read the input, and those that every
        step needs."""
        case = self.case
        inputs = case.input_size + (case.layers - 1) * case.directions * case.output_size
        return (
            case.directions * self.gates * case.hidden_size * inputs,
            case.directions * case.layers * recurrent(case, self.gates),
        )

    def within(self, flops: float) -> "Spec":
        """The same with as many time steps as `flops` allow, but at least 8 of those it has."""
        steps = max(8, int(self.case.T * flops / self.flops()))
        return replace(self, case=replace(self.case, T=min(self.case.T, steps)))
