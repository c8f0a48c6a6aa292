"""One HTML page of everything: a summary, sortable tables and plots, in a file that needs nothing
else. Tables and plots are compressed in it, so it has less than 2 MB; the frame is page.html."""

import base64
import gzip
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from bench import plans, plots, readme
from bench.cases import shape
from bench.charts import charts
from bench.facts import Facts
from bench.report import EVEN, noise, number
from bench.results import OK, Record, Row
from bench.suites import SUITES
from bench.timing import NOISY

TEMPLATE = Path(__file__).with_name("page.html")
PACKED = re.compile(r'<script id="packed" type="text/plain">(.*?)</script>', re.S)

# Heading -> what a cell shows, and for a column of numbers what it is sorted by.
TEXT = {
    "case": lambda row: row.case,
    "T, N, input, hidden, layers": shape,
    "cell": lambda row: row.cell,
    "mode": lambda row: row.mode,
    "dtype": lambda row: row.dtype,
    "device": lambda row: row.device,
    "contender": lambda row: row.contender,
}
NUMBERS = {
    "threads": lambda row: row.threads,
    "filled %": lambda row: row.filled and 100 * row.filled,
    "ms": lambda row: row.ms,
    "µs a step": lambda row: row.step_us if row.suite == "scaling" else None,
    "p99 ms": lambda row: row.ms_p99,
    "p99.9 ms": lambda row: row.ms_p999,
    "ratio": lambda row: row.ratio,
    "± %": lambda row: 100 * noise(row) if row.ratio else None,
    "GFLOP/s": lambda row: row.gflops,
    "% of floor": lambda row: row.percent,
    "peak MiB": lambda row: row.peak_mib,
}


def write(results: list[list[Record]], path: Path, schedules: Iterable[list[Record]] = ()) -> Path:
    """The page of all files of results and of schedules, of which none is empty."""
    links, sections = [], []
    for machine, records in enumerate(results):
        facts = records[-1][1]
        to = " ".join(f'<a href="#m{machine}-{suite}">{suite}</a>' for suite in suites(records))
        links.append(f"<p>{escape(facts.gpu or facts.cpu)}, {facts.isa}: {to}</p>")
        sections.append(section(machine, facts, records))
    text = TEMPLATE.read_text()
    for name, value in {
        "summary": summary(results),
        "cases": cases(results),
        "links": "\n".join(links),
        "packed": pack("\n".join([*sections, *map(gpu, schedules)])),
    }.items():
        text = text.replace("{{" + name + "}}", value, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def unpacked(page: str) -> str:
    """The tables and plots of a page, as a browser unpacks them."""
    return gzip.decompress(base64.b64decode(PACKED.search(page)[1])).decode()


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A plain table: names in the first column, numbers in the others."""

    def line(tag: str, cells: list[str]) -> str:
        rest = "".join(f'<{tag} class="number">{escape(text)}</{tag}>' for text in cells[1:])
        return f"<tr><{tag}>{escape(cells[0])}</{tag}>{rest}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def summary(results: list[list[Record]]) -> str:
    """How many times faster than torch.nn: geometric means over the suite `cpu`, by machine."""
    head, _, *rows = readme.means(results)
    return grid(head, rows)


def gpu(records: list[Record]) -> str:
    """The schedules of the kernels for GPUs."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in plans.table(records).splitlines()]
    title = f"<h2>{escape(records[-1][1].machine())}</h2><p>Times as fast as <code>torch.nn</code>"
    about = "called one by one / replayed from a CUDA graph; T = 100, one direction, I = H."
    return f'{title}, {about}</p><div class="scroll">{grid(head, rows)}</div>'


def cases(results: list[list[Record]]) -> str:
    """Who runs the models that the rows name."""
    named = {row.case for records in results for row, _ in records}
    known = {case.name: case for suite in SUITES.values() for case in suite.cases}
    return "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(case.user)}</dd>"
        for name, case in known.items()
        if name in named
    )


def section(machine: int, facts: Facts, records: list[Record]) -> str:
    """Of one machine."""
    about = {
        "fastrnn": f"{facts.version} ({facts.commit})",
        "torch": facts.torch,
        "Python": facts.python,
        "CPU": f"{facts.cpu}, {facts.cores} cores, {facts.isa}",
        "GPU": facts.gpu
        and f"{facts.gpu}, driver {facts.driver}, CUDA {facts.cuda}, cuDNN {facts.cudnn}",
        "clock": facts.clock_mhz and f"{facts.clock_mhz:.0f} MHz",
        "ceilings": facts.fma_gflops
        and f"{facts.fma_gflops:.0f} GFLOP/s, {facts.cache_gbs:.0f} "
        f"GB/s from the cache, {facts.memory_gbs:.0f} GB/s from memory",
        "torch.mm": f"{facts.mm_gflops:.0f} GFLOP/s on one thread",
        "peers": facts.peers,
        "date": facts.date,
    }
    parts = [
        f'<h2 id="m{machine}">{escape(facts.gpu or facts.cpu)}, {facts.isa}</h2>',
        '<p class="facts">'
        + "; ".join(f"{name} {escape(str(text))}" for name, text in about.items() if text)
        + "</p>",
    ]
    found = charts(records)
    for suite in suites(records):
        rows = [row for row, _ in records if row.suite == suite]
        parts.append(f'<h3 id="m{machine}-{suite}">{suite}: {escape(SUITES[suite].about)}</h3>')
        parts += [f"<figure>{plots.svg(chart)}</figure>" for chart in found if chart.suite == suite]
        parts.append(table(f"t{machine}-{suite}", rows))
    return "\n".join(parts)


def suites(records: list[Record]) -> list[str]:
    """Those that were timed and still exist."""
    return [name for name in dict.fromkeys(row.suite for row, _ in records) if name in SUITES]


def table(identity: str, rows: list[Row]) -> str:
    """With the columns in which some row has something."""
    text = {name: get for name, get in TEXT.items() if name != "device" or rows[0].device != "cpu"}
    numbers = {name: get for name, get in NUMBERS.items() if any(map(get, rows))}
    heads = [f"<th>{escape(name)}</th>" for name in text]
    heads += [f'<th class="number">{escape(name)}</th>' for name in numbers]
    body = []
    for row in rows:
        cells = [f"<td>{escape(get(row))}</td>" for get in text.values()]
        if row.status == OK:
            cells += [cell(name, get(row)) for name, get in numbers.items()]
        else:
            status = escape(row.status)
            cells.append(f'<td class="wrong" colspan="{len(numbers)}" data-value="">{status}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<input type="search" data-table="{identity}" placeholder="filter rows: gru training …">'
        f'<div class="scroll"><table id="{identity}"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def cell(name: str, value: float | None) -> str:
    if value is None:
        return '<td class="number" data-value=""></td>'
    kind = ""
    if name == "ratio" and abs(value - 1) > EVEN:
        kind = " faster" if value > 1 else " slower"
    if name == "± %" and value > 100 * NOISY:
        kind = " noisy"
    shown = str(value) if name == "threads" else f"{value:.0f}" if "%" in name else number(value)
    return f'<td class="number{kind}" data-value="{value:.6g}">{shown}</td>'
