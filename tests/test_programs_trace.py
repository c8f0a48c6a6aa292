"""Steps in Python as programs: forward and backward against autograd of the step."""

from __future__ import annotations

import pytest
from program_cells import CELLS
from program_checks import check, draw


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("H", [1, 5, 8])
def test_cells(name, H):
    # torch's derivative of hardsigmoid has 1 / 6 in float32, also for float64
    check(CELLS[name], draw(CELLS[name], 3, H), 1e-7 if name == "hard_lstm" else 1e-11)
