"""The cases of `python -m bench` under pytest-benchmark: for those who track regressions with
`--benchmark-autosave` and `--benchmark-compare`. Contenders do not take turns here, so compare a
contender with itself at an earlier commit, not with another."""

import math

import pytest
import torch

from bench.sessions import MISSING, Local, Unfit
from bench.timing import SAMPLE_SECONDS


def test_speed(spec, contender, benchmark):
    session = Local(contender)
    threads = torch.get_num_threads()
    try:
        estimate = session.open(spec)
        benchmark.group = f"{spec.case.name} {spec.cell} {spec.mode} {spec.dtype} {spec.threads}"
        benchmark.extra_info["gflop"] = spec.flops() / 1e9
        iterations = max(1, math.ceil(SAMPLE_SECONDS / estimate))
        rounds = min(50, max(3, round(1 / (estimate * iterations))))
        call = session.waited if spec.device == "cuda" else session.call
        with contender.around():
            benchmark.pedantic(call, rounds=rounds, iterations=iterations)
    except Unfit as error:
        if str(error).startswith(MISSING):
            pytest.skip(str(error))  # which names the package that is not installed
        pytest.fail(str(error))
    finally:
        session.close()
        torch.set_num_threads(threads)
