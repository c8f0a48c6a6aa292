"""What tests of bad calls share. The fixture `good` of conftest.py makes good calls after them."""

from __future__ import annotations

import pytest

BOTH = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])


def refused(call, *classes: type, match: str = "") -> None:
    """An exception of one of the classes, whose text is short and has no traceback of C++."""
    with pytest.raises(classes) as caught:
        call()
    text = str(caught.value)
    assert match in text, text
    assert len(text) < 250 and "\n" not in text, text
