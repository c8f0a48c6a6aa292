"""Runs notebooks and stores in them what their cells print and draw.

    python -m tools.notebooks docs/course/*.ipynb

No Jupyter is needed: a cell is plain Python. As in Jupyter, the open figures of a cell are shown
below it, and so is the value of a last expression that no semicolon follows.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

COLOURS = 48  # of a stored picture: a chart has few, and a small file loads at once


class Stream(io.StringIO):
    """A standard stream whose text goes to `outputs`, each piece after what came before it."""

    def __init__(self, name: str, outputs: list[dict]):
        super().__init__()
        self.name, self.outputs = name, outputs

    def write(self, text: str) -> int:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("name") != self.name:
            last = {"output_type": "stream", "name": self.name, "text": ""}
            self.outputs.append(last)
        last["text"] += text
        return len(text)


def printed(text: str) -> list[str]:
    """The lines that stay on a screen: a progress bar writes over itself."""
    return re.sub(r"[^\n]*\r", "", text).splitlines(keepends=True)


def drawn(figure: Any) -> dict:
    """A figure as an output; its title describes it to who cannot see it."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, bbox_inches="tight", facecolor="white")
    colours = Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    colours.save(small, "png", optimize=True)
    titles = [
        figure.get_suptitle(),
        *(ax.get_title(side) for ax in figure.axes for side in ("left", "center")),
    ]
    data = {
        "image/png": base64.b64encode(small.getvalue()).decode(),
        "text/plain": ["; ".join(filter(None, titles))],
    }
    return {"output_type": "display_data", "data": data, "metadata": {}}


def run(code: str, variables: dict) -> list[dict]:
    """Runs one cell among the variables of the cells before it; returns its outputs."""
    outputs: list[dict] = []
    body = ast.parse(code).body
    shown = body and isinstance(body[-1], ast.Expr) and not code.rstrip().endswith(";")
    last = ast.Expression(body.pop().value) if shown else None
    with (
        contextlib.redirect_stdout(Stream("stdout", outputs)),
        contextlib.redirect_stderr(Stream("stderr", outputs)),
    ):
        exec(compile(ast.Module(body, []), "<cell>", "exec"), variables)
        value = eval(compile(last, "<cell>", "eval"), variables) if last else None
    for output in outputs:
        output["text"] = printed(output["text"])
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}})
    outputs += [drawn(plt.figure(number)) for number in plt.get_fignums()]
    plt.close("all")
    return outputs


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_all(notebook: dict) -> None:
    """Runs a notebook from its top; each cell gets its number and its outputs."""
    matplotlib.use("agg")
    plt.close("all")
    variables: dict = {"__name__": "__main__"}
    with plt.rc_context():
        for number, cell in enumerate(code_cells(notebook), start=1):
            cell["outputs"] = run("".join(cell["source"]), variables)
            cell["execution_count"] = number
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = number


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        notebook, start = json.loads(path.read_text()), time.process_time()
        run_all(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        size = path.stat().st_size / 1e3
        print(f"{path}: {time.process_time() - start:.0f} s of CPU, {size:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
