"""`make gpu OUT=folder`: all that only a GPU can show, in one run that ends within eight minutes.

    python3 -m bench.gpu --out FOLDER [--skip-build] [--wheels FOLDER] [--only STAGE,STAGE]

Builds for the GPU at hand, runs the tests of GPUs with every backend, then a small set under
compute-sanitizer, then the benchmark. Uses the interpreter and the torch it is run with, and no
network. A stage that fails or is out of time does not keep the next from running; the exit status
is 1 if any did. FOLDER gets one log for each stage, the benchmark's rows and summary.txt.

Nothing but the standard library is imported here, so that whatever is missing fails in its stage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    *("tests/test_gpu.py", "tests/test_gpu_choice.py", "tests/test_gpu_graphs.py"),
    *("tests/test_cuda.py", "tests/test_cuda_calls.py", "tests/test_cuda_errors.py"),
    *("tests/test_triton.py", "tests/test_triton_programs.py"),
    "tests/test_cuda_persistent.py",  # last: kernels whose blocks wait for each other
)
SMALL = ("tests/test_gpu.py", "-k", "small_layers")
GRACE = 5  # seconds to say what went wrong when the time is over
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BENCH = ("--filter", "fastrnns,char-lm,flashrnn,tts,odd", "--seconds", "0.4")

# What the stages run on, and what the summary begins with.
FACTS = """
import platform, torch
print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
print("cuDNN", torch.backends.cudnn.version())
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
"""
ARCHITECTURE = """
import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}{'a' if major >= 9 else ''}")
"""


@dataclass(frozen=True)
class Stage:
    """Commands that run at the same time, and are all killed after so many seconds."""

    name: str
    seconds: float
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)
    skipped: str = ""  # why it does not run, which is no failure


def tests(*arguments: str) -> tuple[str, ...]:
    """pytest, which writes no cache into the checkout."""
    options = ("-q", "--tb=short", "--continue-on-collection-errors", "-p", "no:cacheprovider")
    return (sys.executable, "-m", "pytest", *options, *arguments)


def sanitizers(tool: str) -> list[tuple[str, ...]]:
    """One command for each of TOOLS.

    What initcheck is to know of, memory that other kernels wrote, only it can see if it looks at
    these too; the other tools look at ours alone, with the option for that, whose name changed.
    """
    text = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    option = next((o for o in ("--kernel-name", "--kernel-regex", "--filter") if o in text), None)
    ours = (option, "kns=fastrnn") if option else ()
    options = ("--error-exitcode", "1", "--target-processes", "all")
    return [
        (tool, "--tool", name, *options, *(() if name == "initcheck" else ours), *tests(*SMALL))
        for name in TOOLS
    ]


def stages(out: Path, skip_build: bool, wheels: Path | None) -> list[Stage]:
    """What a run does, in this order."""
    python = sys.executable
    parallel = importlib.util.find_spec("xdist") is not None or (
        wheels is not None and any(wheels.glob("pytest_xdist*"))
    )
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    build = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    return [
        Stage("facts", 20, ((python, "-c", FACTS), ("nvidia-smi",))),
        Stage(
            "build",
            140,
            (tuple(build),),
            {"FASTRNN_BUILD": "cuda"} | architecture(),
            "SKIP_BUILD" if skip_build else "",
        ),
        Stage("report", 20, ((python, "-m", "fastrnn"),)),
        Stage(
            "tests",
            120,
            (tests(*TESTS, *(("-n", str(os.cpu_count())) if parallel else ())),),
            {"OMP_NUM_THREADS": "1"},
        ),
        Stage(
            "sanitize",
            70,
            tuple(sanitizers(sanitizer)) if sanitizer else (),
            # each allocation its own, so that what lies behind it belongs to nobody
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
            "" if sanitizer else "there is no compute-sanitizer",
        ),
        Stage(
            "bench",
            100,
            (
                (python, "-m", "bench", "gpu", *BENCH, "--at-most", "70", "--save", "--results")
                + (str(out),),
            ),
        ),
    ]


def architecture() -> dict[str, str]:
    """TORCH_CUDA_ARCH_LIST for the GPU at hand, if torch knows it and nobody said otherwise."""
    if "TORCH_CUDA_ARCH_LIST" in os.environ:
        return {}
    run = subprocess.run([sys.executable, "-c", ARCHITECTURE], capture_output=True, text=True)
    return {} if run.returncode else {"TORCH_CUDA_ARCH_LIST": run.stdout.strip()}


def unpack(wheels: Path, site: Path) -> None:
    """Makes the wheels of a folder importable in the stages; what is installed stays as it is."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(site), *map(str, sorted(wheels.glob("*.whl")))], check=True)


def run(stage: Stage, log: Path) -> str:
    """Runs a stage: "ok", "skipped: why", or what went wrong."""
    if stage.skipped:
        return f"skipped: {stage.skipped}"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
    end = time.monotonic() + stage.seconds
    parts = [log.with_suffix(f".{k}.part") for k in range(len(stage.commands))]
    started: list[tuple[tuple[str, ...], subprocess.Popen | None]] = []
    for command, part in zip(stage.commands, parts, strict=True):
        with part.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                file.write(f"{error}\n".encode())
                process = None
            started.append((command, process))
    faults = [fault for _, process in started if (fault := finish(process, end))]
    with log.open("wb") as file:
        for (command, _), part in zip(started, parts, strict=True):
            shown = " ".join(word if "\n" not in word else "..." for word in command)
            file.write(f"$ {shown}\n".encode() + part.read_bytes() + b"\n")
            part.unlink()
    return "; ".join(faults) or "ok"


def finish(process: subprocess.Popen | None, end: float) -> str:
    """Waits until a process ends, or ends it with its children when the time is over: first as
    Ctrl-C does, upon which pytest reports what it knows."""
    if process is None:
        return "not started"
    try:
        status = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):  # children that are left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "out of time"
    return f"exit status {status}" if status else ""


def run_all(stages: Iterable[Stage], out: Path) -> int:
    """Runs the stages one after the other and keeps the summary; the number that failed."""
    failed = 0
    lines: list[str] = []
    for stage in stages:
        begin = time.monotonic()
        log = out / f"{stage.name}.log"
        log.unlink(missing_ok=True)  # of an earlier run
        outcome = run(stage, log)
        failed += outcome != "ok" and not stage.skipped
        found = [f"{stage.name:10}{time.monotonic() - begin:6.0f} s  {outcome}"]
        found += [f"    {line}" for line in tail(log)]
        lines += found
        print("\n".join(found), flush=True)
        (out / "summary.txt").write_text("\n".join(lines) + "\n")
    return failed


def tail(log: Path) -> list[str]:
    """The last five lines of a log that say something."""
    if not log.exists():
        return []
    lines = [line.rstrip()[:200] for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if line][-5:]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu")
    parser.add_argument("--out", type=Path, required=True, help="where logs and results go")
    parser.add_argument("--skip-build", action="store_true", help="over what was built elsewhere")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that the tests may import")
    parser.add_argument("--only", help="names of stages, separated by commas")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.wheels:
        site = out / "site"
        unpack(options.wheels, site)
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(site) + (os.pathsep + others if others else "")
    wanted = stages(out, options.skip_build, options.wheels)
    if options.only:
        names = options.only.split(",")
        unknown = set(names) - {stage.name for stage in wanted}
        if unknown:
            parser.error(f"no stage {', '.join(sorted(unknown))}")
        wanted = [stage for stage in wanted if stage.name in names]
    failed = run_all(wanted, out)
    if options.wheels:
        shutil.rmtree(out / "site")
    print(f"{failed} of {len(wanted)} stages failed; see {out}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
