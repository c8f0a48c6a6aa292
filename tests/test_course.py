"""The course in `docs/course`: every notebook runs, and stores what it prints and draws now."""

import base64
import copy
import json
import re
from pathlib import Path

import pytest

from tools import notebooks

COURSE = Path(__file__).resolve().parents[1] / "docs" / "course"
LESSONS = sorted(COURSE.glob("*.ipynb"))
SWAP = re.compile(r"from fastrnn import (.+?)  # or: from torch\.nn import \1$", re.M)
REPORTED = re.compile(r"^.*\b(?:right|found)\b.*$", re.M)  # lines whose shares the prose relies on

pytestmark = pytest.mark.usefixtures("one_thread")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def source(cell: dict) -> str:
    return "".join(cell["source"])


def text_of(output: dict) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def form(cell: dict) -> list[tuple]:
    """The outputs of a cell without their figures: kinds, lines of text, titles."""
    return [
        ("picture", text_of(output))
        if "image/png" in output.get("data", {})
        else (output.get("name", "value"), text_of(output).count("\n"))
        for output in cell["outputs"]
    ]


def shares(notebook: dict) -> list[float]:
    """The percentages that a lesson reports, in its order."""
    printed = "".join(text_of(o) for c in notebooks.code_cells(notebook) for o in c["outputs"])
    return [float(n) for line in REPORTED.findall(printed) for n in re.findall(r"([\d.]+)%", line)]


def test_the_course_has_its_lessons_in_order():
    assert [int(path.name.split("_")[0]) for path in LESSONS] == list(range(1, 10))
    index = (COURSE / "index.md").read_text()
    site = (COURSE.parents[1] / "mkdocs.yml").read_text()
    for path, following in zip(LESSONS, [*LESSONS[1:], None], strict=True):
        first, last = (source(read(path)["cells"][k]) for k in (0, -1))
        title = re.match(r"# (.+)", first)[1]
        assert title.startswith(path.name.split("_")[0]) and f"[{title}]({path.name})" in index
        assert f"course/{path.stem}.md" in site
        assert "**Question.**" in first and "<details" in last
        assert following is None or f"({following.name})" in last.splitlines()[-1]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_what_is_stored_is_complete_and_small(path: Path):
    notebook = read(path)
    cells = notebooks.code_cells(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(len(SWAP.findall(source(cell))) for cell in cells) == 1
    assert all(
        source(cell).count("fastrnn") == source(cell).count("from fastrnn") for cell in cells
    )
    pictures = [
        base64.b64decode(output["data"]["image/png"])
        for cell in cells
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert pictures and all(len(picture) < 60_000 for picture in pictures)
    assert path.stat().st_size < 150_000


def test_lessons_share_their_data_word_for_word():
    def data(number: int) -> str:
        cells = map(source, notebooks.code_cells(read(LESSONS[number - 1])))
        (text,) = (text for text in cells if "LANGUAGES =" in text)
        return re.sub(r"LANGUAGES = .*", "", re.split(r"\n+print\(", text)[0])

    assert data(1) == data(2) == data(3) == data(4) == data(7)
    assert data(5) == data(6) and data(8) == data(9)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_and_gives_what_is_stored(path: Path):
    stored = read(path)
    fresh = copy.deepcopy(stored)
    notebooks.run_all(fresh)
    for before, now in zip(*map(notebooks.code_cells, (stored, fresh)), strict=True):
        assert form(now) == form(before), source(now)
    for before, now in zip(shares(stored), shares(fresh), strict=True):
        assert abs(before - now) <= 12


def accuracy_with(library: str) -> float:
    """Of the text classifier with its LSTM from `library`, after a short training."""
    notebook = read(LESSONS[6])
    for cell in notebooks.code_cells(notebook):
        text = SWAP.sub(rf"from {library} import \1", source(cell))
        cell["source"] = [text.replace("EPOCHS, BATCH = 8, 64", "EPOCHS, BATCH = 2, 64")]
    notebooks.run_all(notebook)
    (share,) = shares(notebook)
    return share


def test_the_text_classifier_runs_by_changing_one_import():
    ours, theirs = map(accuracy_with, ("fastrnn", "torch.nn"))
    assert abs(ours - theirs) <= 4 and theirs > 50


def test_a_cell_shows_what_jupyter_shows():
    seen: dict = {}
    assert notebooks.run("x = 3", seen) == []
    assert notebooks.run("x;", seen) == []
    (value,) = notebooks.run("x + 1", seen)
    assert value["data"] == {"text/plain": ["4"]}
    (bar, text) = notebooks.run(
        "import sys\nsys.stderr.write('1 of 2\\r2 of 2\\n')\nprint('a')\nprint('b');", seen
    )
    assert bar["text"] == ["2 of 2\n"] and text["text"] == ["a\n", "b\n"]
    (figure,) = notebooks.run(
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('A line');", seen
    )
    assert figure["data"]["text/plain"] == ["A line"]
    assert base64.b64decode(figure["data"]["image/png"])[:4] == b"\x89PNG"
    with pytest.raises(ZeroDivisionError):
        notebooks.run("print('before')\n1 / 0", seen)
    assert notebooks.run("x", seen)[0]["data"] == {"text/plain": ["3"]}
