"""bench/micro without a GPU: rows and the arithmetic of the floors. Every figure is made up."""

import csv
from dataclasses import replace

import pytest

from bench.micro import floors, rows, run

# Made up: no machine gave these rows.
MADE_UP = """\
allgather,blocks=128 gather=8192 way=flag,step,2000,cycles,10,5
allgather,blocks=128 gather=8192 way=flag,step,1000,ns,5,5
allgather,blocks=128 gather=8192 way=phase,step,1500,cycles,10,5
allgather,blocks=128 gather=8192 way=phase,step,750,ns,5,5
allgather,blocks=128 gather=8192 way=none,step,400,cycles,10,5
allgather,blocks=128 gather=16384 way=phase,step,1700,cycles,10,5
clusters,cluster=1 kib=200,resident,132,clusters,0,1
clusters,cluster=8 kib=200,resident,14,clusters,0,1
clusters,cluster=16 kib=200,resident,0,clusters,0,1
dsmem_push,cluster=8 clusters=1 gather=8192 way=bulk,step,500,cycles,1,5
dsmem_push,cluster=8 clusters=14 gather=8192 way=bulk,step,900,cycles,1,5
dsmem_push,cluster=8 clusters=14 gather=8192 way=st_async,step,800,cycles,1,5
mma_rate,n=8 warps=8 tiles=1 ksteps=32 b=smem,rate,1000,FLOP/clk/SM,1,7
mma_rate,n=8 warps=16 tiles=2 ksteps=8 b=smem,rate,2000,FLOP/clk/SM,1,7
mma_rate,n=8 warps=8 tiles=4 ksteps=8 b=reg,rate,3000,FLOP/clk/SM,1,7
l2_read,blocks=128 share=none way=bulk,read,7,TB/s,0.1,7
l2_read,blocks=128 share=all way=bulk,read,9,TB/s,0.1,7
boundary,blocks=128 work=2000 way=pdl,boundary,700,ns,9,9
boundary,blocks=128 work=2000 way=plain,boundary,1200,ns,9,9
ceilings,op=product size=8192 dtype=bf16,rate,800,TFLOP/s,5,15
"""


def made_up(*programs: str) -> list[rows.Row]:
    lines = MADE_UP.splitlines()
    return [
        row
        for program in programs or run.PROGRAMS
        for row in rows.parse(program, "\n".join(li for li in lines if li.startswith(program)))
    ]


class TestRows:
    def test_a_row_says_what_was_printed(self):
        (row,) = rows.parse("clusters", "clusters,cluster=8 kib=200,resident,15,clusters,0,1", 2)
        assert row == rows.Row(
            "clusters", "cluster=8 kib=200", "resident", 15, "clusters", 0, 1, run=2
        )
        assert row.get("cluster") == "8"
        with pytest.raises(KeyError):
            row.get("gather")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("Segmentation fault", "not a row"),
            ("clusters,a=1,resident,nan,clusters,0,1", "not finite"),
            ("clusters,a=1,resident,3,clusters,inf,1", "not finite"),
            ("mma_rate,a=1,resident,3,clusters,0,1", "a row of mma_rate"),
            ("clusters,a=1,resident,many,clusters,0,1", "many"),
        ],
    )
    def test_what_is_no_row_is_an_error(self, line, message):
        with pytest.raises(ValueError, match=message):
            rows.parse("clusters", line)

    def test_rows_survive_the_file_with_facts_and_comments(self, tmp_path):
        path = tmp_path / "rows.csv"
        rows.save(made_up(), {"gpu": "none, made up"}, path)
        assert next(csv.DictReader(path.open()))["gpu"] == "none, made up"
        path.write_text("# made up for the test\n" + path.read_text())
        assert rows.load(path) == made_up()

    def test_a_figure_is_the_median_of_its_runs(self):
        (row, *_) = made_up("boundary")
        table = rows.Table(
            replace(row, value=value, run=run) for run, value in enumerate((3.0, 9.0, 4.0))
        )
        assert table.value("boundary", "boundary", "ns", way="pdl") == 4
        assert [row.value for row in table.find("boundary", "boundary", "ns")] == [4]
        assert table.values("boundary", "boundary", "ns", "blocks") == {128: 4}
        assert table.value("boundary", "boundary", "ns", way="plain") is None

    def test_a_figure_of_several_rows_is_an_error(self):
        with pytest.raises(ValueError, match="several"):
            rows.Table(made_up()).value("boundary", "boundary", "ns", blocks=128)


class TestFloors:
    """The constants that are assumed give the sums that were worked out by hand with them."""

    def test_a_cluster_step_by_hand(self):
        # H = 512, 8 sequences in a cluster of 16: 128 rows of gates a block.
        machine = floors.Machine(clusters={16: 1})
        product = 2 * 128 * 512 * 8 / 2617  # 401 > 384 of shared memory
        exchange = 270 + 8 * 512 * 2 * 15 / 16 / 13.2
        cycles = product + 60 + (100 + 5 * 256 / 16) + 80 + exchange
        assert cycles == pytest.approx(1573, abs=1)
        assert floors.clusters(machine, 512, 8) == pytest.approx(cycles / 1900)

    def test_one_block_exchanges_nothing(self):
        # H = 128, 8 sequences: 512 rows of gates, all weights in the registers of one SM.
        machine = floors.Machine(clusters={1: 1}, push={})
        cycles = 2 * 512 * 128 * 8 / 2617 + 60 + (100 + 5 * 1024 / 16) + 80
        assert floors.clusters(machine, 128, 8) == pytest.approx(cycles / 1900)

    def test_a_grid_step_by_hand(self):
        # H = 1024, 32 sequences in two groups of 64 SMs; 0.6 us of synchronisation.
        cycles = 801 + 60 + 180 + 80 + 16 * 1024 * 2 / 35
        machine = floors.Machine()
        assert floors.grid(machine, 1024, 32) == pytest.approx(cycles / 1900 + 0.6, rel=1e-3)

    def test_a_grid_step_where_shared_memory_is_the_limit(self):
        # H = 768, 16 sequences in four groups of 32 SMs: 96 rows, 4 sequences, 144 KiB of weights;
        # in two groups: 48 rows of gates, 8 sequences, and that is faster.
        memory = min((8 / k * 8 * 768 * 2 + 2 * k * 48 * 8 * 4) / 128 for k in (1, 2, 4, 8))
        cycles = max(2 * 48 * 768 * 8 / 2617, memory) + 60 + 100 + 5 * 12 * 8 / 16 + 80
        cycles += 8 * 768 * 2 / 35
        machine = floors.Machine()
        assert floors.grid(machine, 768, 16) == pytest.approx(cycles / 1900 + 0.6)

    def test_a_launch_by_hand(self):
        # H = 1024: 8 MiB of weights at 6 TB/s, or 2^31 operations at 600 TFLOP/s.
        machine = floors.Machine()
        assert floors.launches(machine, 1024, 1, 1) == pytest.approx(1.3 + 8.388608 / 6)
        assert floors.launches(machine, 1024, 256, 2) == pytest.approx(2.6 + 2147.483648 / 600)

    def test_a_backward_cluster_step_by_hand(self):
        # As forward, but the sums are floats, added up by their owner, and there is one tanh.
        machine = floors.Machine(clusters={16: 1})
        exchange = 270 + 8 * 512 * 4 * 15 / 16 / 13.2 + 8 * 512 * 4 / 128
        cycles = 2 * 128 * 512 * 8 / 2617 + 60 + (100 + 256 / 16) + 80 + exchange
        assert floors.clusters(machine, 512, 8, backward=True) == pytest.approx(cycles / 1900)

    def test_backward_through_the_grid_gathers_four_gates(self):
        machine = floors.Machine(gather={128: floors.Curve([(0, 0), (1, 1e6)])})
        forward = floors.grid(machine, 512, 1)
        assert floors.grid(machine, 512, 1, backward=True) == pytest.approx(4 * forward, rel=1e-4)

    def test_a_faster_push_moves_the_border_of_the_clusters(self):
        slow = floors.Machine()
        fast = floors.Machine(push=dict.fromkeys((2, 4, 8, 16), floors.Curve.line(270, 32)))
        assert floors.clusters(slow, 512, 64) > floors.grid(slow, 512, 64)
        assert floors.clusters(fast, 512, 64) < floors.grid(fast, 512, 64)

    def test_what_does_not_fit_is_no_design(self):
        machine = floors.Machine()
        assert floors.clusters(machine, 1024, 8) is None
        assert floors.grid(machine, 4096, 8) is None
        assert set(floors.floors(machine, 4096, 8)) == {"c", "c2"}

    def test_constants_are_taken_from_rows(self):
        machine = floors.measure(rows.Table(made_up()))
        assert machine.clock == 2
        assert machine.mma == {8: 2000, 16: 2617, 32: 2617, 64: 3890}  # b=smem, the best split
        assert machine.clusters == {1: 132, 8: 14}
        assert machine.push[8](7168) == 800  # of all clusters at once, the faster way
        assert machine.gather[128](8192) == 1500  # not `none`, which waits for nothing
        assert machine.gather[128](12288) == 1600
        assert (machine.boundary, machine.l2, machine.matrix) == (700, 7, 600)

    def test_constants_without_rows_stay_and_are_named(self):
        report = floors.report(rows.Table(made_up("boundary")))
        assert floors.measure(rows.Table(made_up("boundary"))).measured == ["boundary"]
        assert "| boundary | 1300 | 700 |" in report
        assert "| l2 | 6 | no row |" in report

    def test_the_report_marks_the_least(self):
        report = floors.report(rows.Table([])).splitlines()
        line = next(line for line in report if line.startswith("| 2048 | b |"))
        # As worked out with the same constants when the designs were first compared.
        assert line.startswith("| 2048 | b | **1.60** | **2.05** | **2.83** | **4.47** | 7.53 |")

    def test_a_curve_is_straight_between_its_points(self):
        curve = floors.Curve([(4, 10), (2, 6), (8, 30)])
        assert [curve(x) for x in (1, 2, 3, 4, 6, 8, 10)] == [6, 6, 8, 10, 20, 30, 40]
        assert floors.Curve([(2, 6)])(9) == 6
