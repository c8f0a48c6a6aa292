"""Charts, plots and the page of the benchmark suite; the page is also opened in a browser."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_doubles import FACTS, FAILED, row
from project import ROOT

from bench import page, plots, readme, results
from bench.charts import charts, intensity
from bench.suites import SCALING


def records() -> list:
    """Of every kind: cases in two cells, a failed one, ways to a feature, latencies, axes."""
    even = {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    rows = [FAILED]
    for case, ratio in (("alpha", 0.5), ("beta", 12.0), ("gamma", 3.0)):
        for cell in ("LSTM", "GRU"):
            place = {"case": case, "cell": cell, "floor_ms": 0.5}
            ours = {"ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.3 * ratio}
            rows += [row(**place, **ours), row("torch.nn", **place, ms=2.0 * ratio, **even)]
    way = {"case": "reset", "suite": "features", "baseline": "torch.nn loop"}
    rows += [row(**way), row("torch.nn loop", **way, **even)]
    step = {"case": "step", "suite": "stream"}
    rows += [row("fastrnn step", **step, ms_p99=2.5, ms_p999=3.0), row("torch.nn", **step, **even)]
    for case in SCALING:
        place = {"case": case.name, "T": case.T, "suite": "scaling", "ms": 0.1 * case.T}
        rows += [row(name, **place, peak_mib=5.0) for name in ("fastrnn", "torch.nn")]
    return [(one, FACTS) for one in rows]


def test_there_is_a_chart_for_everything_that_was_measured():
    found = {chart.name: chart for chart in charts(records())}
    assert set(found) == {
        "cpu-inference-float32-1-thread",
        "features-torch-nn-loop-inference-float32-1-thread",
        "stream-inference-float32-1-thread",
        "cpu-roofline-inference-float32-1-thread",
        *(f"{what}-over-{axis}-LSTM-inference-float32-1-thread"
          for what in ("step", "memory") for axis in "TNH"),
    }  # fmt: skip
    bars = found["cpu-inference-float32-1-thread"]
    assert [one.name for one in bars.series] == ["GRU", "LSTM"]
    assert bars.series[1].x == ("alpha", "beta", "gamma")
    assert bars.series[1].y == (0.5, 12.0, 3.0)
    assert bars.series[1].high == pytest.approx((0.65, 15.6, 3.9))
    over_t = found["step-over-T-LSTM-inference-float32-1-thread"]
    assert over_t.series[0].x == (16, 64, 256, 1024, 4096, 16384)
    assert over_t.series[0].y == pytest.approx((100,) * 6)  # µs a step
    ways = found["features-torch-nn-loop-inference-float32-1-thread"]
    assert [one.name for one in ways.series] == ["fastrnn", "torch.nn loop"]
    assert ways.y == "times faster than torch.nn loop"


def test_the_roofline_bends_where_reading_and_computing_take_as_long():
    (roof,) = [chart for chart in charts(records()) if chart.kind == "roofline"]
    cache = next(one for one in roof.series if one.name == "weights in cache")
    assert cache.x[1] == pytest.approx(100 / 80)
    assert cache.y[1:] == pytest.approx((100, 100)) and cache.y[0] < 100
    old = replace(FACTS, fma_gflops=None)
    kinds = {chart.kind for chart in charts([(one, old) for one, _ in records()])}
    assert kinds == {"bars", "lines"}
    assert charts([]) == []


def test_intensity_counts_a_read_of_the_recurrent_weights_every_step():
    one = row(T=10, hidden_size=8, layers=2, gflops=3.0, ms=5.0)
    assert intensity(one) == pytest.approx(3e9 * 5e-3 / (10 * 2 * 4 * 8 * 8 * 4))
    assert intensity(replace(one, mode="training")) == pytest.approx(intensity(one) / 2)
    projected = intensity(replace(one, proj_size=2))  # (4 * 8 * 2 + 8 * 2) of 4 * 8 * 8 weights
    assert projected == pytest.approx(intensity(one) * 256 / 80)


def test_plots_are_drawn_as_svg_and_png(tmp_path):
    found = list({chart.kind: chart for chart in charts(records())}.values())
    drawn = plots.draw(found, tmp_path)
    assert {path.stem for path in drawn} == {chart.name for chart in found}
    for chart in found:
        assert (tmp_path / f"{chart.name}.png").read_bytes().startswith(b"\x89PNG")
        root = ElementTree.parse(tmp_path / f"{chart.name}.svg").getroot()
        assert root.tag.endswith("svg")
    before = (tmp_path / f"{found[1].name}.svg").read_text()
    plots.draw(found[1:2], tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {found[1].name}  # no stale ones
    assert (tmp_path / f"{found[1].name}.svg").read_text() == before  # the same rows, the same file


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return page.write([records()], tmp_path_factory.mktemp("page") / "new" / "index.html")


def test_the_page_has_everything_in_itself(written):
    whole = written.read_text()
    assert "{{" not in whole
    text = page.unpacked(whole)
    outside = r'<(?:script|link|img)[^>]*(?:src|href)="([^"]*)"'
    assert re.findall(outside, whole) == re.findall(outside, text) == []
    assert text.count("<table") == 4 and text.count("<figure") == len(charts(records()))
    assert "wrong: output, by 3e-1" in text


def test_the_page_of_all_saved_rows_is_small_and_begins_with_a_summary(tmp_path, monkeypatch):
    """Plots are left out here: they take long, and 0.3 MB."""
    monkeypatch.setattr(page.plots, "svg", lambda chart: "")
    saved, schedules = results.kept(ROOT / "bench" / "results")
    whole = page.write(saved, tmp_path / "index.html", schedules).read_text()
    assert len(whole) < 1_000_000
    for machine in readme.means(saved)[2:]:
        assert machine[0] in whole[: whole.index("<main>")]
    assert "<dt>vad</dt><dd>voice activity detection" in whole
    assert "replayed from a CUDA graph" in page.unpacked(whole)


def test_what_a_row_says_is_text_on_the_page(tmp_path):
    strange = row(case="<script>alert(1)</script>", ms_p99=1.0)
    whole = page.write([[(strange, FACTS)]], tmp_path / "index.html").read_text()
    text = page.unpacked(whole)
    assert "<script>alert" not in whole + text and "&lt;script&gt;alert" in text


# --- In a browser -----------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def tab(written):
    """The page, opened from disk in a headless browser that reaches no network."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, BROWSERS)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)}, and none of playwright's own")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_context(offline=True).new_page()
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("requestfailed", lambda request: tab.errors.append(request.url))
        tab.goto(written.as_uri())
        yield tab
        browser.close()


def test_every_plot_is_drawn(tab):
    tab.locator("figure svg").first.wait_for()
    order = list(dict.fromkeys(one.suite for one, _ in records()))
    expected = sorted(charts(records()), key=lambda chart: order.index(chart.suite))
    drawn = tab.locator("figure svg")
    assert drawn.count() == len(expected)
    for number, chart in enumerate(expected):
        plot = drawn.nth(number)
        words = set(plot.locator("text").all_text_contents())
        assert {chart.title, chart.x, chart.y, *(one.name for one in chart.series)} <= words
        assert plot.bounding_box()["width"] > 400
    assert tab.errors == []


def column(tab, name: str) -> list[str]:
    heads = tab.locator("#t0-cpu thead th").all_inner_texts()
    place = [re.sub(r" [▲▼]$", "", head) for head in heads].index(name) + 1
    return tab.locator(f"#t0-cpu tbody tr td:nth-child({place})").all_inner_texts()


def test_a_click_on_a_heading_sorts(tab):
    head = tab.locator("#t0-cpu thead th", has_text="ratio")
    for order in (1, -1):
        head.click()
        found = [float(text) for text in column(tab, "ratio")]
        assert found == sorted(found, reverse=order < 0)
        assert set(found) == {0.5, 1.0, 3.0, 12.0}
    assert head.get_attribute("aria-sort") == "descending"
    tab.locator("#t0-cpu thead th", has_text="case").click()
    found = column(tab, "case")
    assert found == sorted(found) and len(set(found)) == 4
    assert head.get_attribute("aria-sort") is None
    assert tab.errors == []


def test_words_filter_the_rows(tab):
    tab.locator("input[data-table=t0-cpu]").fill("GRU beta")
    assert tab.locator("#t0-cpu tbody tr:visible").count() == 2
    tab.locator("input[data-table=t0-cpu]").fill("")
    assert tab.locator("#t0-cpu tbody tr:visible").count() == 13
