"""What the README says about speed: claims worked out from rows, and the places they go to."""

import pytest
from bench_doubles import FACTS, FAILED, row

from bench import claims, readme, results
from bench.contenders import BASELINE

NAMES = tuple(readme.blocks([]))


def pair(ratio: float, noise: float = 0.0, peer: float = 0.0, **changes) -> list[results.Record]:
    """Rows of ours, of torch.nn and perhaps of a peer, whose quartiles lie `noise` away."""
    spread = {"ratio_low": ratio * (1 - noise), "ratio_high": ratio * (1 + noise)}
    even = {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    rows = [row(ratio=ratio, **spread, **changes), row(BASELINE.name, **even, **changes)]
    if peer:
        rows.append(row("peer", ratio=peer, ratio_low=peer, ratio_high=peer, **changes))
    return [(one, FACTS) for one in rows]


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict"),
    [(1.2, 0.1, "faster"), (1.2, 0.3, "even"), (1.04, 0.0, "even"), (0.9, 0.02, "slower"),
     (0.9, 0.2, "even"), (0.96, 0.01, "even")],
)  # fmt: skip
def test_a_claim_respects_its_scatter(ratio, noise, verdict):
    (claim,) = claims.claims([pair(ratio, noise)])
    assert claim.verdict == verdict
    assert str(claim) == f"`tiny` LSTM inference {ratio:.2f} ± {noise:.0%} (avx2)"


def test_claims_are_against_the_best_rival():
    (claim,) = claims.claims([pair(3.0, peer=4.0)], claims.to_peers)
    assert claim.ratio == 0.75 and claim.verdict == "slower"
    ways = [row(), row("torch.nn loop", ratio=1.0), row("torch.nn pad", ratio=2.0)]
    (claim,) = claims.claims([[(one, FACTS) for one in ways]])
    assert claim.ratio == 1.5
    assert claims.claims([pair(3.0)], claims.to_peers) == []


def test_what_the_readme_says_is_worked_out_from_the_rows():
    sizes = pair(4.0, case="stream") + pair(0.5, 0.01, 1.0, case="lm", mode="training")
    other = pair(9.0, case="lm", mode="training", threads=2)
    found = readme.blocks([sizes + other])
    assert "A CPU, avx2, one thread, float32, 2026-01-02: LSTM 4.00 and 0.50, GRU" in found["line"]
    assert "over 2 models." in found["line"] and "last output" not in found["line"]
    last = pair(7.0, suite="last-step", case="last-100", mode="training")
    last += pair(3.0, suite="last-step", case="all-100", mode="training")
    last += pair(5.0, suite="rounded", case="lm")
    more = readme.blocks([sizes + last])
    line = more["line"]
    assert "5.00" not in more["kinds"] + line
    assert "over 2 models." in line
    assert "last output alone training is LSTM 7.00, GRU –, RNN – times as fast." in line
    assert "| one time step a call | 4.00 | – |" in found["kinds"]
    assert "| batches, 650 and 1024 units | – | 0.50 |" in found["kinds"]
    assert "packed" not in found["kinds"]  # no such row
    least = "`lm` LSTM training 0.50 ± 1% (avx2); `stream` LSTM inference 4.00 ± 0% (avx2)"
    assert f"| `torch.nn`, 1 thread | 1 | 0 | 1 | {least} |" in found["balance"]
    assert "| `torch.nn`, 2 threads | 1 | 0 | 0 |" in found["balance"]
    assert "the faster, 1 thread | 0 | 0 | 1 |" in found["balance"]
    assert "| A CPU, avx2, 2 threads (abc, 2026-01-02) | – | 9.00 |" in found["means"]
    line = (
        "| `torch.nn`, 1 thread | lm | LSTM | training | 0.50 | 1% | slower | A CPU, avx2 (abc) |"
    )
    assert line in readme.page([sizes])


def test_the_verdict_of_a_run():
    rows = [one for one, _ in pair(4.0) + pair(1.0, case="lm")]
    first, second = claims.verdict(rows, FACTS)
    assert first == (
        "Faster than torch.nn in 1 of 2 rows, even in 1, slower in 0; geometric mean 2.00x."
    )
    assert second == "Weakest row: lm LSTM inference, 1.00x ± 0%."
    base = row(ratio=2.0, ratio_low=2.0, ratio_high=2.0, baseline="fastrnn@HEAD")
    assert claims.verdict([base], FACTS)[0].startswith("Faster than fastrnn@HEAD in 1 of 1 rows")
    assert claims.verdict([FAILED], FACTS) == ["No verdict: no row has a ratio."]


# --- The README -------------------------------------------------------------------------------


def test_figures_go_between_the_markers(tmp_path):
    path = tmp_path / "README.md"
    parts = ["\n".join((first, "old", last)) for first, last in map(readme.markers, NAMES)]
    path.write_text("# Title\n\n" + "\n".join(parts) + "\n\ntail\n")
    for _ in range(2):  # a second time changes nothing
        written = readme.rewrite(tmp_path, [pair(4.0, case="stream")])
        assert written == [path, tmp_path / "bench" / "RESULTS.md"]
        text = path.read_text()
        assert text.startswith("# Title\n\n<!-- bench:begin") and text.endswith("\n\ntail\n")
        assert "old" not in text and text.count("| one time step a call |") == 1


@pytest.mark.parametrize("text", ["none", "begin", "end begin", "begin begin end"])
def test_a_readme_without_the_markers_is_left_alone(text, tmp_path):
    path = tmp_path / "README.md"
    begin, end = readme.markers(NAMES[0])
    path.write_text(text.replace("begin", begin).replace("end", end))
    before = path.read_text()
    with pytest.raises(ValueError, match="bench:begin"):
        readme.rewrite(tmp_path, [pair(4.0)])
    assert path.read_text() == before and not (tmp_path / "bench").exists()
