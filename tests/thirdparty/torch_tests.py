"""PyTorch's own tests with our recurrent modules in the place of its own, by `fastrnn.install()`.

`python tests/thirdparty/torch_tests.py FOLDER [FILE ...]`, where FOLDER is the folder `test` of the
sources of the PyTorch that is installed: an installation has no tests. Of each FILE, or of those
below, it runs the tests whose name or source speaks of recurrent modules. What fails is run again
with `torch.nn`, and what passes there is listed. Not a part of `make test`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import ROOT, TORCH_TESTS, environment

FILES = """
    test_nn.py test_modules.py test_expanded_weights.py test_overrides.py test_fx.py
    test_autograd.py test_autocast.py test_serialization.py test_fake_tensor.py
    test_multiprocessing.py test_jit.py jit/test_models.py nn/test_packed_sequence.py
    nn/test_load_state_dict.py nn/test_pruning.py dynamo/test_aot_autograd.py
    ao/sparsity/test_structured_sparsifier.py quantization/core/test_quantized_module.py
    quantization/eager/test_quantize_eager_ptq.py quantization/eager/test_numeric_suite_eager.py
    quantization/fx/test_quantize_fx.py quantization/fx/test_numeric_suite_fx.py
    quantization/jit/test_deprecated_jit_quant.py onnx/test_pytorch_onnx_no_runtime.py
    onnx/test_pytorch_onnx_onnxruntime.py onnx/test_utility_funs.py
""".split()
RECURRENT = re.compile(r"RNN|LSTM|GRU", re.IGNORECASE)

outcomes: dict[str, str] = {}


# What pytest calls, in the process that runs the tests.


def pytest_configure() -> None:
    """Swaps before any test is imported."""
    if os.environ["SWAP"]:
        import fastrnn

        fastrnn.install()


def pytest_collection_modifyitems(items: list) -> None:
    items[:] = filter(_is_recurrent, items)


def _is_recurrent(item) -> bool:
    try:
        source = inspect.getsource(inspect.unwrap(item.function))
    except (OSError, TypeError):  # made by a program
        source = ""
    return bool(RECURRENT.search(item.name) or RECURRENT.search(source))


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))


# What runs them.


def run(python: Path, folder: Path, tests: list[str], swap: bool) -> dict[str, str]:
    """What became of each test."""
    here = Path(__file__)
    paths = [here.parent, ROOT, folder, os.environ.get("PYTHONPATH", "")]
    command = [python, "-W", "ignore", "-m", "pytest", "-q", "--noconftest", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", here.stem, "--rootdir", folder, *tests]
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "SWAP": "1" * swap}
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "outcomes.json"
        variables = os.environ | own | {"OUTCOMES": str(found)}
        log = folder / f"recurrent-{'fastrnn' if swap else 'torch'}.log"
        with log.open("w") as file:
            subprocess.run(command, env=variables, cwd=folder, stdout=file, stderr=file)
        if not found.exists():
            sys.exit(f"the tests did not end: {log}")
        return json.loads(found.read_text())


def main() -> None:
    folder, python = Path(sys.argv[1]).resolve(), environment(TORCH_TESTS)
    files = sys.argv[2:] or [file for file in FILES if (folder / file).exists()]
    ours = run(python, folder, files, swap=True)
    count = list(ours.values()).count
    print(f"{count('passed')} pass, {count('failed')} fail, {count('skipped')} are skipped")
    failed = [test for test, outcome in ours.items() if outcome == "failed"]
    theirs = run(python, folder, failed, swap=False) if failed else {}
    for test, outcome in theirs.items():
        if outcome == "passed":
            print(f"passes only with torch.nn: {test}")


if __name__ == "__main__":
    main()
