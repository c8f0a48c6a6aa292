"""`pytest bench`: options, and one test for every spec and contender of a suite."""

from bench.facts import cores
from bench.jobs import entrants
from bench.suites import SUITES, select


def pytest_addoption(parser):
    group = parser.getgroup("fastrnn benchmarks")
    group.addoption("--suite", choices=SUITES, default="quick")
    group.addoption("--filter", default="", help="cases whose names contain one of a,b,c")


def pytest_generate_tests(metafunc):
    if "contender" not in metafunc.fixturenames:
        return
    suite = SUITES[metafunc.config.getoption("--suite")]
    specs = select(suite, cores=cores(), names=metafunc.config.getoption("--filter"))
    pairs = [(spec, one) for spec in specs for one in entrants(spec, (), suite.extra)]
    ids = [
        f"{spec.case.name}-{spec.cell}-{spec.mode}-{spec.dtype}-{spec.threads}-{one.name}"
        for spec, one in pairs
    ]
    metafunc.parametrize("spec, contender", pairs, ids=ids)
