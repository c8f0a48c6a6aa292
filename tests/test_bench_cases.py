"""What the benchmark suite times: cases, suites, options."""

from dataclasses import replace

import pytest
from bench_doubles import TINY

from bench.cases import CELLS, DTYPES, PUBLISHED, STEPS, Case, Spec, recurrent, shape
from bench.ceilings import Ceilings, floor
from bench.jobs import JOBS, baseline, entrants, find
from bench.options import parse
from bench.suites import CPU, SUITES, select

EVERY_CASE = [case for suite in SUITES.values() for case in suite.cases]


def test_every_case_says_who_runs_it_and_has_a_name_of_its_own():
    assert all(case.user and case.job in JOBS for case in EVERY_CASE)
    named = {}
    for case in EVERY_CASE:
        assert named.setdefault(case.name, case) == case


def test_the_quick_suite_has_every_case_cell_and_mode_once_on_one_thread():
    specs = select(SUITES["quick"], cores=2)
    assert len(specs) == len(set(specs)) == len(CPU) * len(CELLS) * 2
    assert {(spec.threads, spec.dtype, spec.device) for spec in specs} == {(1, "float32", "cpu")}
    assert {"stream", "vad", "rnnoise", "text", "rl", "ts", "lm", "big"} == {c.name for c in CPU}


def test_the_cpu_suite_also_takes_all_cores():
    assert {spec.threads for spec in select(SUITES["cpu"], cores=6)} == {1, 6}
    assert {spec.threads for spec in select(SUITES["cpu"], cores=1)} == {1}


def test_the_variants_suite_has_every_case_in_three_ways():
    cases = {case.name: case for case in SUITES["variants"].cases}
    for case in CPU:
        assert cases[f"{case.name}-bi"] == replace(case, name=f"{case.name}-bi", bidirectional=True)
        projected = cases[f"{case.name}-proj"]
        assert projected.proj_size == case.hidden_size / 2
        assert [cell for cell in CELLS + STEPS if projected.has(cell)] == ["LSTM"]
        assert (f"{case.name}-packed" in cases) == (case.T > 1)
    assert len(cases) == 8 + 7 + 8
    specs = select(SUITES["variants"], cores=2)
    assert len(specs) == 2 * (3 * (8 + 7) + 8)
    assert {spec.threads for spec in specs} == {1}


def test_packed_rows_of_the_variants_end_between_a_third_and_all_of_the_steps():
    for case in SUITES["variants"].cases:
        if case.job == "packed":
            found = case.lengths()
            assert len(found) == case.N and max(found) == case.T
            assert case.N == 1 or min(found) == case.T // 3
            assert case.N == 1 or sorted(found) != found != sorted(found, reverse=True)
            assert case.filled() == pytest.approx(1 if case.N == 1 else 2 / 3, abs=0.01)


def test_the_bfloat16_suite_has_ours_in_float32_as_well():
    suite = SUITES["bfloat16"]
    specs = select(suite, cores=2)
    assert {spec.dtype for spec in specs} == {"bfloat16"} and len(specs) == len(CPU) * 3 * 2
    assert names(CPU[1], "GRU", "training", (), suite.extra, dtype="bfloat16") == [
        "fastrnn", "torch.nn", "fastrnn float32",
    ]  # fmt: skip
    assert "fastrnn float32" not in names(CPU[1], "GRU", "training", (), suite.extra)


def test_the_gpu_suite_gives_a_case_only_the_cells_that_its_models_have():
    specs = select(SUITES["gpu"], cores=2)
    assert {spec.device for spec in specs} == {"cuda"}
    assert {spec.cell for spec in specs if spec.case.name == "wavernn"} == {"GRU"}
    assert {spec.dtype for spec in specs if spec.case.name == "flashrnn"} == {
        "float16", "bfloat16", "tf32", "float32",
    }  # fmt: skip
    assert all(
        {"torch.nn", "torch.nn graph", "fastrnn", "fastrnn graph"} <= who
        for who in ({one.name for one in entrants(s, (), SUITES["gpu"].extra)} for s in specs)
        if "haste" in who
    )


def test_the_scaling_suite_moves_along_one_axis_at_a_time():
    for case in SUITES["scaling"].cases:
        assert case.input_size == case.hidden_size
        sizes = (case.T, case.N, case.hidden_size)
        assert sum(a != b for a, b in zip(sizes, (32, 8, 256), strict=True)) <= 1
    assert {case.T for case in SUITES["scaling"].cases} >= {16, 16384}
    assert {case.N for case in SUITES["scaling"].cases} >= {1, 4096}
    assert {case.hidden_size for case in SUITES["scaling"].cases} >= {16, 4096}


def test_a_selection_can_be_narrowed():
    specs = select(
        SUITES["quick"], cores=2, names="t,vad", cells=("GRU",), modes=("training",), threads=(3,),
        dtypes=("float64",), device="cuda",
    )  # fmt: skip
    assert [spec.case.name for spec in specs] == ["stream", "vad", "text", "ts"]
    places = {(s.cell, s.mode, s.threads, s.dtype, s.device) for s in specs}
    assert places == {("GRU", "training", 3, "float64", "cuda")}
    assert select(SUITES["quick"], cores=2, names="nothing") == []


def test_cells_of_one_step_are_timed_on_cases_of_one_step():
    specs = select(SUITES["cpu"], cores=1, cells=("GRUCell",))
    assert {spec.case.name for spec in specs} == {"stream"}
    assert select(SUITES["stream"], cores=1, cells=STEPS) == []


def test_flops_count_the_products_of_every_layer_and_direction():
    text = next(case for case in CPU if case.name == "text")
    forward = 2 * 100 * 32 * 4 * 256 * (128 + 256)
    assert Spec(text, "LSTM", "inference").flops() == forward
    assert Spec(text, "LSTM", "forward").flops() == forward
    assert Spec(text, "LSTM", "training").flops() == 3 * forward
    assert Spec(TINY, "GRU", "inference").flops() == 2 * 9 * 3 * 3 * 5 * ((4 + 5) + (5 + 5))
    both = replace(TINY, bidirectional=True)
    products = 2 * ((4 + 5) + (10 + 5))  # two directions, the second layer reads both
    assert Spec(both, "GRU", "inference").flops() == 2 * 9 * 3 * 3 * 5 * products


def test_flops_of_a_projected_lstm():
    case = replace(TINY, proj_size=2)
    layers = (4 * 5 * (4 + 2) + 5 * 2) + (4 * 5 * (2 + 2) + 5 * 2)
    assert Spec(case, "LSTM", "inference").flops() == 2 * 9 * 3 * layers
    both = replace(case, bidirectional=True)  # the second layer reads both directions
    layers = (4 * 5 * (4 + 2) + 5 * 2) + (4 * 5 * (4 + 2) + 5 * 2)
    assert Spec(both, "LSTM", "training").flops() == 3 * 2 * 9 * 3 * 2 * layers
    assert recurrent(case, 4) == 4 * 5 * 2 + 5 * 2
    assert (shape(case), shape(both)) == ("9, 3, 4, 5, 2 proj 2", "9, 3, 4, 5, 2 bi proj 2")


def test_flops_of_rows_that_end_early():
    case = replace(TINY, job="lengths", T=10, N=4)
    assert sorted(case.lengths()) == [4, 6, 8, 10] != case.lengths()
    whole = Spec(replace(case, job="layer"), "RNN", "inference").flops()
    assert Spec(case, "RNN", "inference").flops() == whole * 28 / 40
    assert case.filled() == 28 / 40
    assert replace(case, N=1).lengths() == [10]
    assert sorted(replace(case, shortest=1 / 3).lengths()) == [3, 5, 8, 10]


def test_a_loss_on_the_last_output_makes_no_backward_product_due():
    specs = select(SUITES["last-step"], cores=2)
    of_last = [spec for spec in specs if spec.case.job == "last"]
    assert len(of_last) == len(specs) / 2
    for spec in of_last:
        inference = replace(spec, mode="inference")
        everywhere = replace(spec, case=replace(spec.case, job="layer"))
        assert spec.flops() == inference.flops() == everywhere.flops() / 3
        ceilings = Ceilings(1e12, ((2**40, 1e10),))
        assert floor(spec, ceilings) == floor(inference, ceilings) < floor(everywhere, ceilings)


def test_a_shortened_spec_keeps_everything_but_the_steps():
    big = Spec(next(case for case in CPU if case.name == "big"), "GRU", "inference")
    half = big.within(big.flops() / 2)
    assert half == replace(big, case=replace(big.case, T=25))
    assert big.within(1).case.T == 8
    assert big.within(1e15) == big


# --- Contenders -------------------------------------------------------------------------------


def names(case: Case, cell="LSTM", mode="inference", *arguments, **spec) -> list[str]:
    return [one.name for one in entrants(Spec(case, cell, mode, **spec), *arguments)]


def test_who_takes_part():
    assert names(TINY) == ["fastrnn", "torch.nn", "onnxruntime", "OpenVINO"]
    assert names(TINY, "GRU", "training") == ["fastrnn", "torch.nn"]
    assert names(TINY, dtype="float64") == ["fastrnn", "torch.nn"]
    assert names(TINY, "LSTMCell") == ["fastrnn", "torch.nn"]
    assert names(TINY, device="cuda") == ["fastrnn", "torch.nn"]
    everybody = ["fastrnn", "torch.nn", "onnxruntime", "OpenVINO"]
    assert names(replace(TINY, bidirectional=True), "RNN") == everybody
    assert names(replace(TINY, proj_size=2)) == everybody
    assert names(replace(TINY, proj_size=2, bidirectional=True)) == everybody[:2]
    packed = replace(TINY, job="packed")
    assert names(packed) == everybody
    padded = ("fastrnn padded",)
    assert names(packed, "GRU", "inference", (), padded) == [*everybody, *padded]
    assert names(packed, "GRU", "training", (), padded) == [*everybody[:2], *padded]
    both_ways = replace(packed, bidirectional=True)  # where padding would be read first
    assert names(both_ways, "GRU", "training", (), padded) == everybody[:2]
    step = replace(TINY, T=1, N=1, job="step")
    assert {"fastrnn Streamer", "fastrnn step", "torch.nn", "OpenVINO"} <= set(names(step))


def test_contenders_can_be_asked_for_and_the_baseline_comes_along():
    assert names(TINY, "LSTM", "inference", ("OpenVINO",)) == ["torch.nn", "OpenVINO"]
    assert "fastrnn reference" in names(TINY, "LSTM", "inference", (), ("fastrnn reference",))
    one_layer = replace(TINY, layers=1)
    assert "haste" in names(one_layer, "LSTM", "inference", ("haste",), device="cuda")
    assert "haste" not in names(one_layer, "GRU", "inference", ("haste",), device="cuda")


def test_every_job_has_ours_first_and_a_baseline():
    for job, some in JOBS.items():
        assert some[0].name.startswith("fastrnn")
        assert baseline(job).name.startswith("torch.nn")
        assert len({one.name for one in some}) == len(some)
        assert all(find(job, one.name) is one for one in some)


def test_a_case_may_have_modes_of_its_own():
    modes: dict[str, list[str]] = {}
    for spec in select(SUITES["corners"], cores=2, cells=("GRU",)):
        modes.setdefault(spec.case.name, []).append(spec.mode)
    assert modes["wide"] == ["inference", "training"]
    assert modes["chunk-2"] == ["inference"]
    assert modes["penalty"] == modes["samples"] == ["training"]


def test_the_products_of_a_job_are_those_of_inference_so_many_times():
    jobs = {"input gradient": 2, "penalty": 6, "loss and penalty": 6, "func.grad": 3, "layer": 3}
    for job, times in jobs.items():
        spec = Spec(replace(TINY, job=job), "GRU", "training")
        assert spec.flops() == times * replace(spec, mode="inference", case=TINY).flops()


# --- Floors -----------------------------------------------------------------------------------


def test_the_floor_is_the_slower_of_products_and_reading_weights():
    case = Case("one", 100, 1, 256, 256, 1, "nobody")
    spec = Spec(case, "LSTM", "inference")
    weights = 4 * 256 * 256 * 4  # bytes of the recurrent ones: 1 MiB
    slow_units = Ceilings(1e9, ((1 << 30, 1e15),))
    assert floor(spec, slow_units) == pytest.approx(spec.flops() / 1e9)
    assert floor(replace(spec, mode="training"), slow_units) == pytest.approx(
        3 * spec.flops() / 1e9
    )
    slow_cache = Ceilings(1e15, ((1 << 19, 4e9), (1 << 20, 2e9), (1 << 30, 1e9)))
    assert floor(spec, slow_cache) == pytest.approx(100 * weights / 2e9)
    assert floor(replace(spec, mode="training"), slow_cache) == pytest.approx(200 * weights / 2e9)
    on_two = replace(spec, threads=2)  # half of the weights on each, which fit closer
    assert floor(on_two, slow_cache) == pytest.approx(100 * weights / 4e9)
    projected = replace(
        spec, case=replace(case, proj_size=128)
    )  # weights of h and of the projection
    assert floor(projected, slow_cache) == pytest.approx(100 * (weights / 2 + 256 * 128 * 4) / 2e9)
    large = replace(case, hidden_size=1 << 14)
    assert floor(replace(spec, case=large), slow_cache) > 100 * 4 * 4 * (1 << 28) / 1e9 * 0.99


def test_the_floor_of_a_gpu_reads_everything_once():
    case = Case("one", 100, 2, 3, 5, 1, "nobody")
    spec = Spec(case, "LSTM", "inference", "float16", device="cuda")
    read = 2 * (4 * 5 * 5 + 4 * 5 * 3 + 100 * 2 * (3 + 5))
    assert floor(spec, Ceilings(1e15, ((0, 1e3),))) == pytest.approx(read / 1e3)
    spec = replace(spec, case=replace(case, layers=2, proj_size=2, bidirectional=True))
    weights = 2 * (4 * 5 * 3 + 4 * 5 * 4) + 4 * (4 * 5 * 2 + 5 * 2)
    read = 2 * (weights + 100 * 2 * (3 + 2 * 2))
    assert floor(spec, Ceilings(1e15, ((0, 1e3),))) == pytest.approx(read / 1e3)


# --- Options ----------------------------------------------------------------------------------


def test_options_by_name():
    options = parse(
        "features stream --cells gru --modes forward,training --dtypes tf32 --threads 1,4 "
        "--contenders openvino;TORCH.NN".split()
    )
    assert options.suites == ["features", "stream"]
    assert (options.cells, options.modes) == (("GRU",), ("forward", "training"))
    assert (options.dtypes, options.threads) == (("tf32",), (1, 4))
    assert options.contenders == ("OpenVINO", "torch.nn")
    assert parse([]).suites == ["quick"]
    assert parse(["--suite", "overhead"]).suites == ["overhead"]


@pytest.mark.parametrize(
    "words",
    ["--cells lstn", "--threads 0", "--suite all", "nosuite", "--dtypes int8", "report quick",
     "--contenders nobody", "--base HEAD --save", "--compare no-such-file"],
)  # fmt: skip
def test_a_misspelt_option_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        parse(words.split())
    assert "error" in capsys.readouterr().err


def test_every_suite_has_rows_of_known_cells_and_dtypes():
    known = {*CELLS, *STEPS, *PUBLISHED}
    for suite in SUITES.values():
        for spec in select(suite, cores=2):
            assert spec.cell in known and spec.dtype in DTYPES
