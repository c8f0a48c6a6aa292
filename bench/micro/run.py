"""Compile the programs of this folder, run them, time torch.nn, redo the arithmetic of the floors.

    python -m bench.micro.run [--out FOLDER] [--seconds 450] [--only PROGRAM,...]
    python -m bench.micro.run --compile-only

Writes to `--out`, or to the folder that the variable OUT names: micro.csv, baseline.csv, floors.md,
machine.json, clocks.csv and log.txt. Programs that an earlier call compiled from the same sources
are used as they are, so that a machine without nvcc can run them. Standard library alone; only
`baseline.py` needs torch.
"""

import argparse
import concurrent.futures
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from bench.micro import floors, rows

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
BUILD = ROOT / "build" / "micro"
# In the order in which they are worth having, should one of them take the time of the rest.
PROGRAMS = (
    "clusters",
    "dsmem_latency",
    "dsmem_push",
    "allgather",
    "mma_rate",
    "l2_read",
    "boundary",
    "ceilings",
)
# A spill is an error: it would change what the loops measure.
FLAGS = "-std=c++20 -O3 -Xcompiler -Wall,-Wextra -Xptxas -warn-spills --Werror all-warnings".split()
RUNS = 3
PROGRAM_SECONDS = 30  # after which one is killed; it takes a few
MICRO_SHARE = 0.3  # of all the seconds, after which no further run of the programs begins
RESTARTS = 5  # of the baseline, each behind the case that ended it


class Log:
    """What happened, on stdout and in a file, with the seconds since the start."""

    def __init__(self, path: Path):
        self.file = path.open("w")
        self.start = time.monotonic()

    def __call__(self, message: str) -> None:
        line = f"[{self.seconds():6.1f}] {message}"
        print(line, flush=True)
        print(line, file=self.file, flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self.start


def query_gpu(*names: str) -> list[str]:
    """What nvidia-smi says of the first GPU; empty if there is no such program or no answer."""
    command = ["nvidia-smi", "--query-gpu=" + ",".join(names), "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return [cell.strip() for cell in text.stdout.partition("\n")[0].split(",") if cell]


def architecture() -> str:
    """Of the GPU at hand, as nvcc names it; Hopper's if there is none."""
    capability = query_gpu("compute_cap")
    return (capability[0].replace(".", "") if capability else "90") + "a"


def find_nvcc() -> str | None:
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    return shutil.which("nvcc") or (str(beside) if beside.exists() else None)


def compile_one(nvcc: str, program: str, arch: str, build: Path) -> None:
    """CalledProcessError, after the compiler's own words, if it does not compile or spills."""
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    source = FOLDER / f"{program}.cu"
    subprocess.run([nvcc, *FLAGS, target, "-o", build / program, source], check=True)
    (build / f"{program}.digest").write_text(digest(program, arch))


def digest(program: str, arch: str) -> str:
    """Of all that a compiled program depends on but the compiler."""
    sha = hashlib.sha256(" ".join((*FLAGS, arch)).encode())
    for name in (f"{program}.cu", "micro.cuh"):
        sha.update((FOLDER / name).read_bytes())
    return sha.hexdigest()


def compiled(program: str, arch: str, build: Path) -> bool:
    mark = build / f"{program}.digest"
    return (
        (build / program).exists() and mark.exists() and mark.read_text() == digest(program, arch)
    )


def compile_missing(programs: tuple[str, ...], arch: str, build: Path) -> list[str]:
    """Compile what is not yet, and name it. FileNotFoundError if there is no nvcc for that."""
    missing = [program for program in programs if not compiled(program, arch, build)]
    if missing:
        nvcc = find_nvcc()
        if nvcc is None:
            raise FileNotFoundError("no nvcc on PATH nor in CUDA_HOME")
        build.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda program: compile_one(nvcc, program, arch, build), missing))
    return missing


def cublas() -> list[str]:
    """The path of the cuBLAS that torch's packages brought, if any, as an argument."""
    packages = importlib.util.find_spec("nvidia")
    for folder in packages.submodule_search_locations if packages else ():
        for library in sorted(Path(folder).glob("*/lib/libcublas.so.*")):
            return [str(library)]
    return []


def run_program(program: str, run: int, build: Path, log: Log) -> list[rows.Row]:
    """One run; what it printed before an error or its time ran out is kept."""
    arguments = cublas() if program == "ceilings" else []
    started = log.seconds()
    try:
        done = subprocess.run(
            [build / program, *arguments], capture_output=True, text=True, timeout=PROGRAM_SECONDS
        )
        out, err, status = done.stdout, done.stderr, f"status {done.returncode}"
    except subprocess.TimeoutExpired as late:
        out, err = ((text or b"").decode() for text in (late.stdout, late.stderr))
        out, status = out[: out.rfind("\n") + 1], f"killed after {PROGRAM_SECONDS} s"
    except OSError as error:
        out, err, status = "", "", str(error)
    try:
        found = rows.parse(program, out, run)
    except ValueError as error:
        found, status = [], f"{status}, {error}"
    log(f"{program} run {run}: {len(found)} rows, {status}, {log.seconds() - started:.1f} s")
    for line in err.splitlines():
        log(f"    {line}")
    return found


def run_programs(
    programs: tuple[str, ...], seconds: float, build: Path, log: Log
) -> Iterator[list[rows.Row]]:
    """All rows so far, after each of RUNS runs of the programs; no further run of one begins after
    `seconds`."""
    found = []
    for run in range(RUNS):
        for program in programs:
            if run == 0 or log.seconds() < seconds:
                found += run_program(program, run, build, log)
        yield found


def run_baseline(out: Path, until: float, log: Log) -> bool:
    """torch.nn in a process of its own, begun again behind a case that ended it. Whether the last
    one came to its end."""
    start = 0
    for _ in range(RESTARTS + 1):
        left = until - log.seconds()
        if left < 20:
            break
        command = [sys.executable, "-m", "bench.micro.baseline", f"--start={start}"]
        command += [f"--seconds={left - 10:.0f}", f"--out={out / 'baseline.csv'}"]
        begun = start
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            timer = threading.Timer(left, child.kill)
            timer.start()
            for line in child.stdout:
                log(f"    {line.rstrip()}")
                if match := re.match(r"case (\d+) ", line):
                    begun = int(match[1])
            timer.cancel()
        log(f"baseline: status {child.returncode}")
        if child.returncode == 0:
            return True
        start = begun + 1
    return False


def gather_facts() -> dict[str, str]:
    commit = "unknown"
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        commit = answer.stdout.strip() or commit
    name, driver = query_gpu("name", "driver_version") or ("none", "none")
    sources = b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.cu*")))
    return {
        "gpu": name,
        "driver": driver,
        "python": platform.python_version(),
        "source": hashlib.sha256(sources).hexdigest()[:8],
        "commit": commit,
        "date": date.today().isoformat(),
    }


def gather_machine() -> dict[str, str]:
    """Clocks and limits, for the reader of the rows."""
    names = (
        "name driver_version compute_cap memory.total power.limit clocks.max.sm clocks.max.mem "
        "clocks.sm clocks.mem temperature.gpu compute_mode persistence_mode mig.mode.current"
    ).split()
    return dict(zip(names, query_gpu(*names), strict=False))


class ClockSampler:
    """nvidia-smi beside what runs in the `with` block: a line a second of clocks and power."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        query = "timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,nounits", "-l", "1"]
        self.process = None
        if shutil.which(command[0]):
            with self.path.open("w") as file:
                self.process = subprocess.Popen(command, stdout=file)

    def __exit__(self, *_) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT") or BUILD / "out")
    parser.add_argument("--seconds", type=float, default=450, help="for everything (%(default)s)")
    parser.add_argument("--only", default="", help="programs, by commas; `baseline` is one")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--build", type=Path, default=BUILD)
    chosen = parser.parse_args(words)
    chosen.out = Path(chosen.out)
    chosen.only = tuple(chosen.only.split(",")) if chosen.only else (*PROGRAMS, "baseline")
    if unknown := set(chosen.only) - {*PROGRAMS, "baseline"}:
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    return chosen


def main(words: list[str] | None = None) -> int:
    chosen = arguments(words)
    programs = tuple(program for program in PROGRAMS if program in chosen.only)
    if chosen.compile_only:
        done = compile_missing(programs, "90a", chosen.build)
        print(f"compiled {', '.join(done) or 'nothing: all there'}")
        return 0
    chosen.out.mkdir(parents=True, exist_ok=True)
    log = Log(chosen.out / "log.txt")
    facts, machine = gather_facts(), gather_machine()
    log(f"{facts} {machine}")
    found: list[rows.Row] = []
    complete = True
    if programs:
        arch = architecture()
        try:
            log(f"compiled {compile_missing(programs, arch, chosen.build)}")
        except (OSError, subprocess.CalledProcessError) as error:
            log(f"not everything compiled: {error}")
        ready = tuple(program for program in programs if compiled(program, arch, chosen.build))
        for found in run_programs(ready, MICRO_SHARE * chosen.seconds, chosen.build, log):
            rows.save(found, facts, chosen.out / "micro.csv")
        report = floors.report(rows.Table(found))
        (chosen.out / "floors.md").write_text(report)
    if "baseline" in chosen.only:
        with ClockSampler(chosen.out / "clocks.csv"):
            complete = run_baseline(chosen.out, chosen.seconds, log)
    machine |= {f"{name} after": value for name, value in gather_machine().items()}
    (chosen.out / "machine.json").write_text(json.dumps(facts | machine, indent=1) + "\n")
    if programs:
        print(report)
    log("done")
    return 0 if complete and {row.program for row in found} == set(programs) else 1


if __name__ == "__main__":
    sys.exit(main())
