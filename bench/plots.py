"""The charts as SVG and PNG, and the picture of the README."""

from io import StringIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from bench.charts import Chart

# Without a date and with fixed names inside, the same rows give the same file.
STYLE = {"svg.hashsalt": "fastrnn", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}


def draw(charts: list[Chart], folder: Path) -> list[Path]:
    """Write NAME.svg and NAME.png of each, and remove those of earlier rows from `folder`, which
    has nothing else; the paths of the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        old.unlink()
    written = []
    with rc_context(STYLE):
        for chart in charts:
            figure = KINDS[chart.kind](chart)
            path = folder / f"{chart.name}.png"
            figure.savefig(path, dpi=120)
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            written.append(path)
    return written


def svg(chart: Chart) -> str:
    """The element alone, for a page. Letters stay letters, far smaller than their outlines."""
    with rc_context(STYLE | {"svg.fonttype": "none", "font.family": "sans-serif"}):
        out = StringIO()
        KINDS[chart.kind](chart).savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def frame(chart: Chart, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    return figure, axes


def bars(chart: Chart) -> Figure:
    names = list(dict.fromkeys(name for one in chart.series for name in one.x))
    figure, axes = frame(chart, max(6, 0.35 * len(names) * len(chart.series) + 1.5))
    width = 0.8 / len(chart.series)
    for number, one in enumerate(chart.series):
        places = [names.index(name) + (number + 0.5) * width - 0.4 for name in one.x]
        spread = [
            [y - low for y, low in zip(one.y, one.low, strict=True)],
            [high - y for y, high in zip(one.y, one.high, strict=True)],
        ]
        drawn = axes.bar(
            places, one.y, width, label=one.name, color=one.colour, yerr=spread, capsize=1.5,
            error_kw={"linewidth": 0.8, "alpha": 0.6},
        )  # fmt: skip
        axes.bar_label(drawn, [f"{y:.1f}" for y in one.y], padding=2, fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    crowded = 0.09 * sum(len(name) + 2 for name in names) > figure.get_figwidth() - 2  # inches
    turned = {"rotation": 30, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(names)), names, **turned)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def curves(chart: Chart) -> Figure:
    figure, axes = frame(chart, 7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for one in chart.series:
        points = chart.kind == "roofline" and not one.dashed
        axes.plot(
            one.x, one.y, label=one.name, color=one.colour, markersize=4,
            linestyle="" if points else "--" if one.dashed else "-",
            marker="" if one.dashed else "o",
        )  # fmt: skip
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(plain)
    axes.yaxis.set_major_formatter(plain)
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(plain if high < 30 * low else NullFormatter())
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


KINDS = {"bars": bars, "lines": curves, "roofline": curves}


def picture(charts: list[Chart], title: str, path: Path) -> Path:
    """Bars of several charts as dots, side by side, with their quartiles. A ratio is a factor, so
    the axis is logarithmic and 1, as fast as the baseline, is marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = figure.subplots(1, len(charts), sharex=True, sharey=True, squeeze=False)[0]
        for axes, chart in zip(panels, charts, strict=True):
            dots(axes, chart)
        figure.suptitle(title)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def dots(axes: Axes, chart: Chart) -> None:
    names = list(dict.fromkeys(name for one in chart.series for name in one.x))
    for number, one in enumerate(chart.series):
        places = [names.index(name) + 0.22 * (number - 1) for name in one.x]
        spread = [
            [y - low for y, low in zip(one.y, one.low, strict=True)],
            [high - y for y, high in zip(one.y, one.high, strict=True)],
        ]
        axes.errorbar(
            one.y, places, xerr=spread, fmt="o", markersize=5, color=one.colour, label=one.name,
            elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    mode = chart.title.removeprefix(f"{chart.suite}: ").partition(",")[0]
    axes.set(title=mode, xlabel=chart.y)
