"""Which kernels "auto" takes on a GPU, and that the rows which say so are of what was measured."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from conftest import KERNELS
from program_cells import CELLS
from torch._subclasses import FakeTensorMode

from bench import results
from fastrnn import Recurrent, diagnosis, dispatch
from fastrnn.call import Call
from fastrnn.dispatch import choice, cuda, cudnn, gpu, kept, reference, selftest, triton
from fastrnn.dispatch.choice import Question
from fastrnn.table import weight_names

ROW = choice.Row(
    "triton", 9, frozenset({"gru"}), frozenset({"float16"}), False, (1, 2), (5, 9), (8, 64),
    (256, 512), False,
)  # fmt: skip
CALL = Question("triton", 9, "gru", "float16", False, 1, 5, 8, 512, False)


def test_measured(monkeypatch):
    monkeypatch.setattr(choice, "FASTER", ())
    assert not choice.faster(CALL)
    monkeypatch.setattr(choice, "FASTER", (ROW,))
    assert choice.faster(CALL)
    others = ("cuda", 8, "lstm", "tf32", True, 3, 4, 65, 255, True)
    for k, other in enumerate(others):
        assert not choice.faster(Question(*CALL[:k], other, *CALL[k + 1 :]))
    monkeypatch.setattr(choice, "FASTER", (ROW._replace(captured=True),))
    assert choice.faster(CALL) and choice.faster(CALL._replace(captured=True))
    monkeypatch.setattr(choice, "FASTER", (ROW._replace(eights=False),))
    assert not choice.faster(CALL) and choice.faster(CALL._replace(batch=9))


def test_batches_for_which_cudnn_has_its_fast_kernel():
    """In float16 those that are multiples of 8; in bfloat16 none, also of small layers."""

    def faster(precision: str, batch: int, hidden: int, cell: str = "lstm") -> bool:
        call = Question("cuda", 9, cell, precision, False, 1, 100, batch, hidden, False)
        return choice.faster(call)

    for batch in (1, 7, 9, 12, 15, 17, 63):
        assert faster("float16", batch, 256) and faster("bfloat16", batch, 256)
    for batch in (8, 16, 24, 32, 64):
        assert not faster("float16", batch, 256) and faster("bfloat16", batch, 256)
    assert faster("float16", 12, 1024) and not faster("float16", 16, 1024)
    for hidden in (8, 64, 127):
        assert faster("bfloat16", 16, hidden) and faster("bfloat16", 16, hidden, "gru")
        assert not faster("float16", 12, hidden) and not faster("tf32", 16, hidden)


@pytest.mark.parametrize("row", choice.FASTER, ids=range(len(choice.FASTER)))
def test_faster_only_where_it_was_measured(row, monkeypatch):
    """In every call timed on an H200 that the row speaks for: eager, and replayed from a graph
    where it says so, by the better of the two schedules that `choose.h` takes."""
    monkeypatch.setattr(choice, "FASTER", (row,))
    found: dict[tuple, dict[str, float]] = {}
    _, (kept,) = results.kept(results.FOLDER)
    for timed, _ in kept:
        place = timed.mode, timed.cell, timed.dtype, timed.T, timed.N, timed.hidden_size
        name = timed.contender.removesuffix(" graph")
        replayed = name != timed.contender
        found.setdefault((replayed, *place), {})[name] = timed.ms
    modes = set()
    for (replayed, mode, cell, precision, *sizes), times in found.items():
        call = Question("cuda", 9, cell.lower(), precision, False, 1, *sizes, replayed)
        names = ("fastrnn cuda stepwise", "fastrnn cuda library")
        ours = [times[name] for name in names if name in times]
        if choice.faster(call) and ours and "torch.nn" in times:
            assert min(ours) < times["torch.nn"], call
            modes.add((replayed, mode))
    assert len(modes) == (4 if row.captured else 2)


def test_faster_only_where_tried():
    for row in choice.FASTER:
        assert (row.backend, row.major) in choice.TRIED
        assert all(least <= most for least, most in row[5:9])


def refused(*_) -> str:
    """What a self-test says here: what it does is in test_selftest.py."""
    return "not tried on such a GPU"


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of compute capability 9 with the Triton kernels, as far as the choice can see."""
    monkeypatch.setattr(gpu, "on_gpu", lambda _: True)
    monkeypatch.setattr(dispatch, "loops_for", lambda _: triton)
    monkeypatch.setattr(triton, "obstacle", lambda *_: None)
    monkeypatch.setattr(cuda, "obstacle", lambda *_: None)
    monkeypatch.setattr(gpu, "nvidia", lambda _: 9)
    monkeypatch.setattr(choice, "FASTER", (ROW,))
    monkeypatch.setattr(choice, "TRIED", set())
    monkeypatch.setattr(selftest, "refused", refused)
    monkeypatch.setattr(kept, "machine", lambda device: "a machine on which nothing was measured")


def call(cell: str, h: int = 256, directions: int = 1, projected: bool = False, **fields) -> Call:
    """A call of a layer of `h` units in float16, as far as the choice looks at one."""
    given = {
        "input": torch.empty(5, 8, 4, dtype=torch.float16),
        "batch_sizes": None,
        "h0": torch.empty(directions, 8, h, dtype=torch.float16),
        "c0": None,
        "weights": [],
        "names": weight_names(True, projected),
    }
    return Call(cell=cell, **given | fields)


def test_choice_of_kernels(monkeypatch, hopper):
    """They come first where they are faster, second to none where torch.nn can do nothing, and
    nowhere before they were tried."""
    gru = call("gru")
    lengths = gru._replace(lengths=torch.tensor([1]))
    assert dispatch.choose(gru, 1) is cudnn
    assert dispatch.choose(lengths) is reference
    monkeypatch.setattr(choice, "TRIED", {("triton", 8), ("cuda", 9)})
    assert dispatch.choose(lengths) is reference
    monkeypatch.setattr(choice, "TRIED", {("triton", 9)})
    assert dispatch.choose(call("gru", directions=2), 2) is triton
    assert dispatch.choose(call("gru", directions=3), 3) is cudnn
    assert dispatch.choose(call("gru", directions=2), 1) is cudnn
    assert dispatch.choose(call("gru", projected=True)) is cudnn
    assert dispatch.choose(call("gru", batch_sizes=torch.tensor([1]))) is cudnn
    assert dispatch.choose(gru._replace(input=gru.input[:4])) is cudnn  # too few steps
    assert dispatch.choose(gru._replace(input=gru.input.float())) is cudnn
    assert dispatch.choose(call("lstm")) is cudnn
    assert dispatch.choose(lengths) is triton
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert dispatch.choose(call("lstm")) is triton
    monkeypatch.undo()


@contextlib.contextmanager
def device_of(monkeypatch, capability: tuple[int, int], hip: str | None):
    """Fake tensors on a GPU of this capability, for which both kernels seem to be there."""
    monkeypatch.setattr(gpu, "capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for each in (cuda, triton):
        monkeypatch.setattr(each, "_missing", None)
    monkeypatch.setattr(cuda, "unfit", lambda device: None)
    monkeypatch.setattr(triton, "DEVICE", "cuda")
    monkeypatch.setattr(selftest, "refused", refused)
    monkeypatch.setattr(kept, "machine", lambda device: "a machine on which nothing was measured")
    with FakeTensorMode():
        yield torch.device("cuda", 0)
    monkeypatch.undo()


@pytest.mark.parametrize("capability", [(9, 0), (9, 4), (9, 5), (11, 0)])
def test_an_amd_gpu_is_no_hopper(capability, monkeypatch):
    """ROCm has Triton, and tells a capability under the same name; nothing was tried there."""
    asked = {"lengths": torch.tensor([1] * 8), "batch_sizes": None}
    for hip, kernels in (("6.4", reference), (None, cuda)):
        with device_of(monkeypatch, capability, hip) as device:
            gru = call("gru", input=torch.empty(100, 8, 4, device=device), **asked)
            gru = gru._replace(h0=torch.empty(1, 8, 256, device=device))
            hopper = capability[0] == 9
            assert dispatch.choose(gru) is (kernels if hopper else reference)
            assert dispatch.choose(gru._replace(lengths=None)) is cudnn
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
            compiled = dispatch.choose(gru._replace(lengths=None))
            assert compiled is (cuda if hopper and hip is None else cudnn)


def test_more_rows_than_kernels_count(monkeypatch):
    """Which are read at wrong addresses if they are not refused."""
    lengths = torch.tensor([1])
    with device_of(monkeypatch, (9, 0), None) as device:
        for rows, kernels in ((gpu.MOST_ROWS, cuda), (gpu.MOST_ROWS + 1, reference)):
            input, h0 = (
                torch.empty(1, rows, 1, device=device),
                torch.empty(1, rows, 8, device=device),
            )
            wide = call("gru", input=input, h0=h0)
            assert dispatch.choose(wide._replace(lengths=lengths)) is kernels
            assert dispatch.choose(wide) is cudnn
        assert f"the batch has {rows}" in triton.obstacle(wide)
        assert f"the batch has {rows}" in cuda.obstacle(wide)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("steps", [65_535, 65_536, 480_000])
def test_more_steps_than_cudnn_takes(steps, packed, monkeypatch):
    """The kernels take them, or the reference where these were not tried."""
    for capability, kernels in (((9, 0), cuda), ((8, 0), reference)):
        with device_of(monkeypatch, capability, None) as device:
            sizes = torch.empty(steps, dtype=torch.int64) if packed else None
            input = torch.empty(*(() if packed else (2,)), steps, 4, device=device)
            h0 = torch.empty(1, 1 if packed else 2, 8, device=device)
            found = call("lstm", input=input, h0=h0, c0=h0, batch_sizes=sizes)
            assert dispatch.choose(found) is (kernels if steps > 65_535 else cudnn)
            monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
            assert dispatch.choose(found) is cudnn
            monkeypatch.undo()
    with device_of(monkeypatch, (9, 0), None) as device:
        wide = call("lstm", input=torch.empty(2, 70_000, 4, device=device))
        wide = wide._replace(h0=torch.empty(1, 70_000, 8, device=device))
        assert dispatch.choose(wide) is cudnn


def test_cells_that_are_functions(monkeypatch):
    """Triton takes them where it was tried and CUDA nowhere; the reference says why, once."""
    monkeypatch.setattr(reference, "_warned", set())

    def choices(name: str, capability: tuple[int, int], dtype=torch.float32, H=8) -> list:
        module = Recurrent(CELLS[name], 4, H)
        with device_of(monkeypatch, capability, None) as device:
            input = torch.empty(5, 2, 4, device=device, dtype=dtype)
            h0 = torch.empty(1, 2, H, device=device, dtype=dtype)
            asked = call(module.mode, input=input, h0=h0, weights=module._flat_weights)
            assert "no cells made of functions" in cuda.obstacle(asked)
            return [dispatch.choose(asked) for _ in range(2)]

    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(choice, "TRIED_FUNCTIONS", choice.TRIED)
        assert choices("rnn", (9, 0)) == choices("layer_norm_lstm", (9, 0)) == [triton] * 2
    for name, reason, *where in (
        ("rnn", "not tried on such a GPU", (8, 0)),
        ("gru", "not tried on such a GPU", (9, 0)),
        ("lstm", "dtype is torch.float64", (9, 0), torch.float64),
        ("layer_norm_lstm", "sums over units", (9, 0), torch.float32, triton.SUMMED + 1),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert choices(name, *where) == [reference] * 2
        (warning,) = caught
        assert f"the cell {name} runs as a loop" in str(warning.message)
        assert reason in str(warning.message)


def test_other_kernels_have_rows_of_their_own(monkeypatch, hopper):
    monkeypatch.setattr(choice, "TRIED", {("triton", 9), ("cuda", 9)})
    assert dispatch.choose(call("gru")) is triton
    monkeypatch.setattr(dispatch, "loops_for", lambda _: cuda)
    assert dispatch.choose(call("gru")) is cudnn


def test_report(monkeypatch):
    for each in (cudnn, triton):
        monkeypatch.setattr(each, "status", lambda: None)
    monkeypatch.setattr(cuda, "status", lambda: "broken")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu, on_gpu = (text for _, text in diagnosis.served())
    assert on_cpu == "cpu" if KERNELS else "; not cpu: fastrnn._C" in on_cpu
    assert on_gpu == (
        "cudnn; what torch.nn lacks: reference; not cuda: broken; not triton: not yet tried on "
        "such a GPU"
    )
    monkeypatch.setattr(choice, "TRIED", {("triton", 0)})
    assert diagnosis.served()[1][1].startswith("cudnn; what torch.nn lacks: triton;")
    monkeypatch.setattr(choice, "FASTER", (ROW._replace(major=0),))
    assert diagnosis.served()[1][1] == (
        "cudnn, triton where measured faster; what torch.nn lacks: triton; not cuda: broken"
    )
