"""What the benchmark suite knows of the machine: memory, ceilings, facts, switches."""

import mmap
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bench_doubles import FACTS, SPEC

from bench import ceilings, cuda, facts, memory
from bench.contenders import BASELINE
from bench.sessions import Local

# Sessions set the number of threads for their process, which here is that of the tests.
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_peak_is_what_a_call_holds_at_once():
    megabytes = 2**20

    def pages(size):
        # Of the operating system: memory that the C library has kept would not be counted.
        held = mmap.mmap(-1, size * megabytes)
        for place in range(0, len(held), mmap.PAGESIZE):
            held[place] = 1
        return held

    def call():
        held = [pages(40) for _ in range(3)]
        pages(36)
        return held[0]

    # The system may take other memory of the process away during one call, not during each.
    found = max(memory.peak(call, "cpu") for _ in range(3))
    assert 155 * megabytes <= found < 180 * megabytes  # pages are counted in batches
    assert memory.peak(lambda: None, "cpu") < 8 * megabytes


def test_ceilings_of_this_machine():
    """That something was counted: the rates themselves are not judged."""
    found = ceilings.measure("float32", 1)
    assert found.flops > 1e8
    assert [size for size, _ in found.reads] == list(ceilings.SIZES)
    assert found.bandwidth(1) == found.reads[0][1]
    assert found.bandwidth(1 << 40) == found.reads[-1][1]
    assert ceilings.measure("bfloat16", 1) is None


def test_no_ceilings_without_a_compiler(monkeypatch):
    ceilings.compiled.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert ceilings.measure("float32", 1) is None
    ceilings.compiled.cache_clear()


def test_facts_of_this_machine(monkeypatch):
    monkeypatch.setattr(facts, "matrix_rate", lambda: 12.34e9)
    found = facts.gather(ceilings.Ceilings(5e10, ((1 << 18, 7e10), (1 << 27, 2e10))))
    assert (found.mm_gflops, found.fma_gflops) == (12.3, 50)
    assert (found.cache_gbs, found.memory_gbs) == (70, 20)
    assert found.torch == torch.__version__
    assert found.isa in found.machine()
    assert "onnxruntime" in found.peers
    assert facts.gather().fma_gflops is None


def test_the_machine_names_its_file():
    assert FACTS.machine() == "a-cpu-r-avx2-2-cores"
    assert replace(FACTS, gpu="NVIDIA H100 80GB HBM3").machine() == "nvidia-h100-80gb-hbm3"


def test_tf32_is_allowed_where_the_dtype_says_so():
    for dtype in ("tf32", "float32"):
        Local(BASELINE).open(replace(SPEC, dtype=dtype))
        assert torch.backends.cudnn.allow_tf32 == (dtype == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 == (dtype == "tf32")


def test_a_question_to_a_driver_that_is_not_there(monkeypatch):
    assert torch.cuda.is_available() or cuda.query("driver_version") == ""
    shown(monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    assert cuda.query("driver_version") == ""


def test_a_question_is_about_the_gpu_that_torch_uses(monkeypatch, tmp_path):
    """CUDA_VISIBLE_DEVICES hides others from torch, but not from the driver."""
    shown(monkeypatch)
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\necho "$1 $2"\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cuda.query("name") == "--id=GPU-12-ab --query-gpu=name"


def shown(monkeypatch) -> None:
    """Makes it a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = SimpleNamespace(uuid="12-ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm64"])
def test_the_ceilings_of_arm_are_compiled_for_any_arm(monkeypatch, machine):
    """Not every compiler there takes `-march=native`, and each one knows NEON without it."""
    commands, run = [], ceilings.subprocess.run
    monkeypatch.setattr(ceilings.platform, "machine", lambda: machine)
    monkeypatch.setattr(
        ceilings.subprocess,
        "run",
        lambda command, **o: commands.append(command) or run(command, **o),
    )
    assert ceilings.compiled.__wrapped__("float").operations() > 0
    assert ("-march=native" in commands[0]) == (machine == "x86_64")
