"""The documentation: the code in its pages runs, and links within the repository lead somewhere.

`make docs` builds the site, in which every link and anchor between pages is checked once more.
"""

import re
from pathlib import Path

import pytest
import torch

import fastrnn

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "bench").glob("**/*.md"), *(ROOT / "examples").glob("*.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")


def code(path: Path) -> str:
    """Of a page, at the lines where it stands."""
    text, lines = path.read_text(), []
    for block in FENCE.finditer(text):
        if block[1] == "python":
            begin = text.count("\n", 0, block.start(2))
            lines += [""] * (begin - len(lines)) + block[2].splitlines()
    return "\n".join(lines)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in PAGES if code(path)], ids=name)
def test_the_code_of_a_page_runs(path: Path):
    """From top to bottom, as one program."""
    if "Streamer" in code(path) and (reason := fastrnn.backends()["cpu"]) != "usable":
        pytest.skip(f"small weights need the kernels: {reason}")
    torch.manual_seed(0)
    exec(compile(code(path), str(path), "exec"), {"__name__": "page"})


def anchor(heading: str) -> str:
    """Of a heading, as GitHub makes it."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


def test_links_in_the_repository_lead_somewhere():
    found = 0
    for path in TEXTS:
        text = FENCE.sub("", path.read_text())
        for one, image in LINK.findall(text):
            target, _, part = (one or image).partition("#")
            if re.match(r"\w+:", target):  # another host
                continue
            place = (path.parent / target) if target else path
            assert place.exists(), f"{name(path)}: {target}"
            if part:
                heads = re.findall(r"^#+ (.*)$", FENCE.sub("", place.read_text()), re.M)
                assert part in map(anchor, heads), f"{name(path)}: {target}#{part}"
            found += 1
    assert found > 40


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
