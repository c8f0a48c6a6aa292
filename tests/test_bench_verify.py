"""The benchmark suite finds right, against float64, everybody it times."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bench_doubles import PACKED, PROJECTED, SPEC, TINY, altered

from bench import verify
from bench.cases import CELLS, MODES, STEPS, Case, Spec
from bench.contenders import BASELINE, OURS, Contender, flatten, in_float32, tensors
from bench.features import segments
from bench.jobs import JOBS, entrants, find
from bench.problems import CHUNKS, make_problem
from bench.report import SEEN
from bench.suites import SUITES, select
from bench.verify import WrongResult, expected, verified


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("contender", [OURS, BASELINE], ids=lambda contender: contender.name)
def test_both_libraries_are_found_right(contender, cell, mode, dtype):
    spec = Spec(TINY, cell, mode, dtype)
    call = verified(contender, spec).call
    assert len(flatten(call())) == len(make_problem(spec).names())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_short_dtypes_are_compared_within_their_rounding(dtype):
    verified(BASELINE, replace(SPEC, dtype=dtype))
    off = altered(lambda found: [1.2 * one for one in found])
    with pytest.raises(WrongResult):
        verified(off, replace(SPEC, dtype=dtype))


TWO_WAYS = replace(TINY, bidirectional=True)
VARIANTS = {
    "one way": TINY,
    "two ways": TWO_WAYS,
    "projected": PROJECTED,
    "projected, two ways": replace(PROJECTED, bidirectional=True),
    "packed": PACKED,
    "packed, two ways": replace(PACKED, bidirectional=True),
    "packed, one row": replace(PACKED, N=1),
}
ROWS = [
    (one, Spec(case, cell, mode))
    for case in VARIANTS.values()
    for cell in CELLS
    for mode in ("inference", "training")
    if case.has(cell)
    for one in entrants(Spec(case, cell, mode), (), SUITES["variants"].extra)
]


@pytest.mark.parametrize(
    "contender, spec",
    ROWS,
    ids=[
        f"{one.name}-{spec.cell}-{spec.mode}-{name}"
        for one, spec in ROWS
        for name, case in VARIANTS.items()
        if case == spec.case
    ],
)
def test_everybody_is_right_in_every_variant(contender, spec):
    """The runtimes above all, for which the ONNX model is made here."""
    verified(contender, spec)


def test_ours_in_float32_gets_the_numbers_that_were_rounded():
    one = find("layer", "fastrnn float32")
    spec = replace(SPEC, dtype="bfloat16")
    call = verified(one, spec).call
    assert {result.dtype for result in flatten(call())} == {torch.float32}
    rounded = Contender("", lambda problem: lambda: problem.input)
    seen = in_float32(rounded).prepare(make_problem(spec))()
    assert seen.dtype == torch.float32 and torch.equal(seen, seen.bfloat16().float())


def test_other_ways_to_run_ours_and_torchs():
    for name in ("fastrnn reference", "fastrnn cpu"):
        one = find("layer", name)
        with one.around():
            verified(one, SPEC)


class DocumentedHaste(torch.nn.Module):
    """haste_pytorch.LSTM as its documentation describes it: kernels (rows, 4*hidden), gates in the
    order i, g, f, o, one bias."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.empty(input_size, 4 * hidden_size))
        self.recurrent_kernel = torch.nn.Parameter(torch.empty(hidden_size, 4 * hidden_size))
        self.bias = torch.nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], self.recurrent_kernel.shape[0])
        outputs = []
        for step in x:
            i, g, f, o = (step @ self.kernel + h @ self.recurrent_kernel + self.bias).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])


def test_libraries_that_are_not_here_are_called_as_documented(monkeypatch):
    """With stand-ins for haste and for TorchRL, whose modules are batch_first."""
    haste = SimpleNamespace(LSTM=DocumentedHaste)
    monkeypatch.setitem(sys.modules, "haste_pytorch", haste)
    verified(find("layer", "haste"), Spec(replace(TINY, layers=1), "LSTM", "inference"))
    monkeypatch.setitem(sys.modules, "torchrl.modules", torch.nn)
    for mode in MODES:
        verified(find("layer", "TorchRL"), Spec(TINY, "GRU", mode))


def test_the_suite_of_overheads():
    """Layers and cells, each verified against its counterpart in torch.nn."""
    specs = select(SUITES["overhead"], cores=2)
    assert len(specs) == len(CELLS + STEPS) * 2
    assert {(spec.case.T, spec.case.hidden_size) for spec in specs} == {(1, 8)}
    for spec in specs:
        verified(OURS, spec)
    wrong = altered(lambda results: [2 * results[0], *results[1:]])
    for spec in specs:
        with pytest.raises(WrongResult):
            verified(wrong, spec)


def test_gradients_that_are_zero_are_right_where_they_have_to_be():
    one_step = replace(TINY, T=1)  # from a state of zeros: weight_hh has no gradient
    verified(OURS, Spec(one_step, "GRU", "training"))


# --- Features and streams ---------------------------------------------------------------------

BOTH = ("inference", "training")
FEATURES = [
    (contender, job, cell, mode)
    for job, cells, modes in (
        ("last", CELLS, BOTH),
        ("reset", CELLS, BOTH),
        ("lengths", CELLS, BOTH),
        ("states", ("LSTM",), BOTH),
        ("loop", CELLS, BOTH),
        ("input gradient", CELLS, ("training",)),
        ("penalty", CELLS, ("training",)),
        ("loss and penalty", CELLS, ("training",)),
        ("func.grad", CELLS, ("training",)),
        ("per sample", CELLS, ("training",)),
    )
    for contender in JOBS[job]
    for cell in cells
    for mode in modes
    if contender.takes(Spec(TINY, cell, mode))
]


@pytest.mark.parametrize(
    "contender, job, cell, mode",
    FEATURES,
    ids=[f"{one.name}-{job}-{cell}-{mode}" for one, job, cell, mode in FEATURES],
)
def test_features_and_work_arounds_agree(contender, job, cell, mode):
    layers = 1 if job in ("states", "loop") else 2
    case = Case("feature", 70, 3, 4, 5, layers, "nobody", job == "lengths", job)
    problem = make_problem(Spec(case, cell, mode))
    assert problem.reset is None or 1 < problem.reset.sum() < 60
    verified(contender, problem.spec)


def test_a_long_sequence_is_right_where_torch_in_the_same_dtype_is_wrong(monkeypatch):
    """oneDNN's gradients of a large LSTM in bfloat16 are, on a CPU with AMX."""
    real = verify.outcome

    def broken(contender, problem, call):
        results = real(contender, problem, call)
        narrow = contender.name == "torch.nn" and problem.input.dtype == torch.bfloat16
        return [result * 2 if narrow else result for result in results]

    monkeypatch.setattr(verify, "outcome", broken)
    monkeypatch.setitem(verify.MOST_FLOPS, "cpu", 1000)  # so that all time steps need a witness
    expected.cache_clear()
    spec = Spec(Case("long", 40, 3, 4, 5, 1, "nobody"), "LSTM", "training", "bfloat16")
    assert spec.within(1000) != spec
    verified(OURS, spec)
    with pytest.raises(WrongResult):
        verified(BASELINE, spec)
    expected.cache_clear()


def test_what_the_work_arounds_are_measured_by_is_itself_right():
    """Row by row, each segment or sentence alone through torch.nn in float64."""
    for job in ("reset", "lengths"):
        spec = Spec(Case(job, 40, 3, 4, 5, 1, "nobody", job=job), "GRU", "inference", "float64")
        problem, truth = make_problem(spec), expected(spec, "float64")
        module = torch.nn.GRU(4, 5, dtype=torch.float64)
        module.load_state_dict(problem.weights)
        for n in range(3):
            x = problem.input[:, n]
            if job == "lengths":
                output, final = module(x[: problem.lengths[n]])
            else:
                marks = problem.reset[1:, n].nonzero().flatten() + 1
                parts = [module(part) for part in x.tensor_split(marks)]
                output, final = torch.cat([part[0] for part in parts]), parts[-1][1]
            torch.testing.assert_close(truth[0][: len(output), n], output)
            assert not truth[0][len(output) :, n].any()
            torch.testing.assert_close(truth[1][:, n], final)


def test_segments_between_resets():
    reset = torch.tensor([[1, 0], [0, 0], [0, 1], [1, 0]], dtype=torch.bool)  # (T, N)
    assert segments(reset) == ([3, 1, 2, 2], [1, 3])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("contender", JOBS["step"], ids=lambda contender: contender.name)
def test_streams_carry_their_state(contender, cell):
    case = Case("stream", 1, 2, 4, 5, 2, "nobody", job="step")
    if contender.name != "torch.nn compiled":  # which takes a minute
        found = verified(contender, Spec(case, cell, "inference"))
        assert found.error < SEEN


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("contender", JOBS["chunk"], ids=lambda contender: contender.name)
def test_streams_in_chunks_carry_their_state(contender, cell):
    case = Case("stream", 3, 2, 4, 5, 2, "nobody", job="chunk")
    problem = make_problem(Spec(case, cell, "inference"))
    assert [chunk.shape for chunk in problem.chunks()] == [(3, 2, 4)] * CHUNKS
    found = verified(contender, Spec(case, cell, "inference"))
    assert found.error < SEEN
    assert tensors(found.call())[0].shape == (3, 2, 5)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("contender", JOBS["small step"], ids=lambda contender: contender.name)
def test_streams_of_small_weights_say_how_far_they_are_off(contender, cell):
    """Those whose weights are rounded, and no other."""
    case = Case("stream", 1, 2, 24, 40, 2, "nobody", job="small step")
    spec = Spec(case, cell, "inference")
    if contender.takes(spec):
        found = verified(contender, spec)
        assert (found.error > SEEN) == (contender.tolerance > 0)
        assert found.error <= contender.tolerance or found.error < SEEN
