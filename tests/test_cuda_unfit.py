"""GPUs on which the compiled CUDA kernels cannot run at all, with a fake of what CUDA says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastrnn
from fastrnn import __main__, dispatch, tuning
from fastrnn.call import Call
from fastrnn.dispatch import cuda, cudnn, gpu, kept, reference, triton, tuned
from fastrnn.table import weight_names

NO_IMAGE = "no kernel image is available for execution on the device"
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch):
    """GPUs of compute capability 9.0, and kernels compiled with CUDA 13.0. `misfits` is what CUDA
    says of each, `asked` of which it was asked."""
    state = SimpleNamespace(misfits={}, asked=[], driver=13020, current=0, initialized=False)

    class Current:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            self.before, state.current = state.current, self.index

        def __exit__(self, *_):
            state.current = self.before

    def misfit():
        state.asked.append(state.current)
        return state.misfits.get(state.current)

    extension = SimpleNamespace(
        cuda_versions=lambda: (13000, state.driver), cuda_misfit=misfit, __file__=__file__
    )
    monkeypatch.setattr(cuda, "_missing", None)
    monkeypatch.setattr(cuda, "_unfit", {})
    monkeypatch.setattr(cuda, "_extension", lambda: extension)
    monkeypatch.setattr(gpu, "capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu, "current", Current)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: state.initialized)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton, "_missing", "there is no Triton")
    monkeypatch.setattr(kept, "machine", lambda device: "H100")
    monkeypatch.setattr(tuned, "_tables", {})
    return state


def call_on(device: torch.device, **features) -> Call:
    """A call for which the CUDA kernels were faster on such a GPU."""
    with FakeTensorMode():
        x, h0 = (torch.empty(s, device=device).bfloat16() for s in ((50, 3, 4), (1, 3, 128)))
        weights = [torch.empty(s, device=device).bfloat16() for s in ((384, 4), (384, 128))]
    return Call(x, None, h0, None, weights, "gru", weight_names(False, False), **features)


def test_auto_takes_other_ways(hopper):
    fits = torch.device("cuda", 1)
    hopper.misfits[0] = NO_IMAGE
    for _ in range(2):
        assert dispatch.choose(call_on(fits)) is cuda
        assert dispatch.choose(call_on(DEVICE)) is cudnn
        assert dispatch.choose(call_on(fits, detach_every=2)) is cuda
        assert dispatch.choose(call_on(DEVICE, detach_every=2)) is reference
    assert hopper.asked == [1, 0] and hopper.current == 0  # once of each


def test_what_is_forced_raises(hopper):
    hopper.misfits[0] = NO_IMAGE
    with fastrnn.backend("cuda"), pytest.raises(RuntimeError) as raised:
        dispatch.choose(call_on(DEVICE))
    assert str(raised.value) == (
        f"backend 'cuda' cannot run: the kernels cannot run on cuda:0: {NO_IMAGE}. They were "
        "compiled with CUDA 13.0, and the NVIDIA driver serves 13.2; reinstall fastrnn with "
        "TORCH_CUDA_ARCH_LIST=9.0"
    )


def test_a_compiled_graph_asks_while_it_is_made(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the compiler uses it
    hopper.misfits[0] = NO_IMAGE

    def function(x):
        return x + (1 if cuda.unfit(DEVICE) else 2)

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(
    ("driver", "serves"), [(12080, False), (13000, True), (13020, True), (14000, True), (0, True)]
)
def test_a_driver_serves_a_major_version_as_a_whole(hopper, driver, serves):
    hopper.driver = driver
    assert (cuda.status() is None) is serves
    assert (cuda.unfit(DEVICE) is None) is serves
    assert hopper.asked == [0] * serves
    if not serves:
        reason = cuda.status()
        assert (
            cuda.unfit(DEVICE)
            == reason
            == (
                "the kernels were compiled with CUDA 13.0 and the NVIDIA driver serves 12.8; "
                "install a newer driver, or reinstall fastrnn with that toolkit"
            )
        )
        with pytest.raises(RuntimeError, match="'cuda' cannot run: .* install a newer driver"):
            fastrnn.backend("cuda")


def test_a_status_makes_no_context(hopper, monkeypatch):
    """And says nothing of several GPUs, which may differ."""
    hopper.misfits[0] = NO_IMAGE
    assert cuda.status() is None and hopper.asked == []
    hopper.initialized = True
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cuda.status() is None and hopper.asked == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert NO_IMAGE in cuda.status() and NO_IMAGE in fastrnn.backends()["cuda"]


def test_the_report_gives_the_reason(hopper, monkeypatch, capsys):
    hopper.misfits[0] = NO_IMAGE
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(cudnn, "status", lambda: "not here")
    assert __main__.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    reason = cuda.unfit(DEVICE)
    assert facts["backends"]["cuda"] == reason and "cuda" not in facts["checks"]
    assert facts["auto"]["cuda tensors"].startswith("cudnn; what torch.nn lacks: reference; ")
    assert f"not cuda: {reason}" in facts["auto"]["cuda tensors"]
    assert __main__.main(["selftest"]) == 1
    assert f"cannot run: {reason}" in capsys.readouterr().out


def test_nothing_is_tuned_that_cannot_run(hopper):
    hopper.misfits[0] = NO_IMAGE
    with pytest.raises(RuntimeError, match=f"nothing to tune: cuda: .*{NO_IMAGE}.*triton: there"):
        tuning.tune()
