"""The package where no extension was compiled: the tests of without_kernels.py, and a few others,
in a process in which `fastrnn._C` cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
HIDDEN = """
import sys
sys.modules["fastrnn._C"] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""

NAMES = ["without_kernels", "test_modules", "test_feature_kinds", "test_recurrent_streamer"]


@pytest.mark.parametrize("name", NAMES)
def test_hidden(name):
    command = [sys.executable, "-c", HIDDEN, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, FOLDER / f"{name}.py"], cwd=FOLDER.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
