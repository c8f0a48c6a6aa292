"""How blocks of the persistent kernels wait for each other: the emulation sees it if they do not.

Each test breaks one thing in a copy of the kernels and compiles it for the host, with a program
that runs them in several orders of threads. A GPU would show such a fault now and then.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "cpp" / "persistent_protocol.cpp"
COMPILER = shutil.which("g++") or shutil.which("clang++")

# By what is broken: the file, the text there, and what stands in its place.
BROKEN = {
    "states have one place": (
        "states", "places_ + step % 2 * kGroupRows * pitch_", "places_"
    ),
    "nobody waits for states": (
        "states", "arrivals_wait(&counts_", "if (false) arrivals_wait(&counts_"
    ),
    "the wait is for the round before": (
        "states", "step / 2 % 2)", "(step / 2 + 1) % 2)"
    ),
    "the next round is not expected": (
        "states", "if (thread() == 0) arrivals_expect(&counts_[step % 2], bytes_);", ""
    ),
    "too few bytes are expected": (
        "states", "at.rows * Base::pieces_ * 16", "(at.rows * Base::pieces_ - 1) * 16"
    ),
    "blocks send before others have begun": (
        "states", "    cluster_barrier();", ""
    ),
    "states are sent after the last step": (
        "persistent", "if (i + 1 < s.steps) states.send", "states.send"
    ),
    "warps do not wait for each other's sums": (
        "persistent", "warps_barrier(1 + sixteen, kSplit * 32);", ""
    ),
    "gradients have one place": (
        "persistent_backward", "gradients + turn % 2 * kGroupRows * kPitch", "gradients"
    ),
    "parts have one place": (
        "persistent_backward", "(turn % 2 * at.blocks + at.rank)", "at.rank"
    ),
    "parts are sent after the last step": (
        "persistent_backward", "if (turn + 1 < s.steps) {", "{"
    ),
    "warps do not wait for each other's gradients": (
        "persistent_backward", "    block_barrier();", ""
    ),
    "backward begins before others have": (
        "persistent_backward", "  cluster_barrier();", ""
    ),
    "the ring has one round": (
        "states", "static_cast<uint32_t>(step / 2 + 1) & 1", "1"
    ),
    "nobody waits for the ring": (
        "states", "await(pieces[k], in_ring(step, number), bit(step));", ""
    ),
    "warps read what others still copy": (
        "states", "    }\n    block_barrier();\n  }\n", "    }\n  }\n"
    ),
}  # fmt: skip


def run(kernels: Path, program: Path) -> subprocess.CompletedProcess:
    include = [f"-I{kernels}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cpp'}"]
    flags = ["-std=c++20", "-O1", "-w", *include]
    subprocess.run([COMPILER, *flags, PROGRAM, "-o", program], check=True)
    return subprocess.run([program], capture_output=True, text=True, timeout=300)


@pytest.fixture
def kernels(tmp_path) -> Path:
    """A copy of the sources in which a test may break something."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "csrc" / "cuda")
    return tmp_path / "csrc"


def test_the_kernels_are_right(kernels, tmp_path):
    done = run(kernels, tmp_path / "program")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("what", BROKEN)
def test_the_emulation_sees_that(what, kernels, tmp_path):
    name, text, other = BROKEN[what]
    file = kernels / "cuda" / f"{name}.cuh"
    source = file.read_text()
    assert text in source
    file.write_text(source.replace(text, other))
    assert run(kernels, tmp_path / "program").returncode != 0
