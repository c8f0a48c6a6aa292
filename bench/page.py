"""One HTML page of everything: sortable tables and interactive plots, in a file that needs nothing
else. plotly.js is inside it, which makes it 5 MB; the page itself is page.html."""

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from bench.cases import shape
from bench.charts import Chart, charts
from bench.facts import Facts
from bench.report import EVEN, noise, number
from bench.results import OK, Record, Row
from bench.suites import SUITES
from bench.timing import NOISY

TEMPLATE = Path(__file__).with_name("page.html")
CONFIG = {"displaylogo": False, "responsive": True}

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


def write(results: list[list[Record]], path: Path) -> Path:
    """The page of all files of results, of which none is empty."""
    links, sections = [], []
    for machine, records in enumerate(results):
        facts = records[-1][1]
        to = " ".join(f'<a href="#m{machine}-{suite}">{suite}</a>' for suite in suites(records))
        links.append(f"<p>{escape(facts.gpu or facts.cpu)}, {facts.isa}: {to}</p>")
        sections.append(section(machine, facts, records))
    text = TEMPLATE.read_text()
    for name, value in {
        "plotly": get_plotlyjs(),
        "links": "\n".join(links),
        "sections": "\n".join(sections),
    }.items():
        text = text.replace("{{" + name + "}}", value, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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
        parts += [f"<figure>{figure(chart)}</figure>" for chart in found if chart.suite == suite]
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


def figure(chart: Chart) -> str:
    """The div and script of one plot, without plotly.js."""
    out = go.Figure()
    for one in chart.series:
        text = list(one.labels) or None
        if chart.kind == "bars":
            above = [high - y for y, high in zip(one.y, one.high, strict=True)]
            below = [y - low for y, low in zip(one.y, one.low, strict=True)]
            error = {"array": above, "arrayminus": below, "thickness": 1}
            out.add_bar(
                x=list(one.x), y=list(one.y), name=one.name, marker_color=one.colour,
                error_y=error, hovertext=text,
            )  # fmt: skip
            continue
        points = chart.kind == "roofline" and not one.dashed
        mode = "markers" if points else "lines" if one.dashed else "lines+markers"
        line = {"dash": "dash" if one.dashed else "solid", "color": one.colour}
        out.add_scatter(
            x=list(one.x), y=list(one.y), name=one.name, mode=mode, line=line, hovertext=text
        )
    scale = "linear" if chart.kind == "bars" else "log"
    out.update_layout(
        title=chart.title, template="plotly_white", height=440, barmode="group",
        hovermode="closest",
    )  # fmt: skip
    out.update_xaxes(title=chart.x, type="category" if chart.kind == "bars" else scale)
    out.update_yaxes(title=chart.y, type=scale)
    if chart.kind == "lines":  # at the sizes that were timed
        out.update_xaxes(tickvals=sorted({x for one in chart.series for x in one.x}))
    if chart.kind == "bars":
        out.add_hline(1, line_width=1)
    return out.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=None)
