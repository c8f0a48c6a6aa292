"""A process that forks after its threads have run: the child has no threads, and must not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import KERNELS

pytestmark = [
    pytest.mark.skipif(KERNELS is None, reason="the reference has no threads of ours"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]

START = """
import os, sys, torch, fastrnn
from torch import multiprocessing
torch.manual_seed(0)
rnn = getattr(fastrnn, sys.argv[1])(64, 256, bidirectional=True)
x = torch.randn(50, 8, 64)

def results():
    with torch.inference_mode():
        return rnn(x)[0]

def check():
    # Of the child's own operations only ours may use threads, so the comparison is a small one.
    torch.testing.assert_close(results()[::10, :1, ::50], wanted)

"""
WARM = "torch.set_num_threads(2)\nwanted = results()[::10, :1, ::50].clone()\n"
FORK = """
pid = os.fork()
if pid == 0:
    try:
        check()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
torch.testing.assert_close(results()[::10, :1, ::50], wanted)  # the parent has its threads
"""
PROGRAMS = {
    "fork": WARM + FORK,
    "fork of a fork": WARM
    + """
pid = os.fork()
if pid:
    sys.exit(os.waitpid(pid, 0)[1])
"""
    + FORK,
    "pool": WARM
    + """
with multiprocessing.get_context("fork").Pool(2) as pool:
    for each in [pool.apply_async(check) for _ in range(4)]:
        each.get(40)
""",
    "set_num_threads": WARM + FORK.replace("check()", "torch.set_num_threads(2); check()"),
    # Small, since torch's own operations on large tensors wait in the child for ever.
    "training": """
torch.set_num_threads(2)
rnn = getattr(fastrnn, sys.argv[1])(64, 64)
x = torch.randn(50, 1, 64)
wanted = [None]

def results():
    output = rnn(x)[0]
    return torch.autograd.grad(output, list(rnn.parameters()), torch.ones_like(output))

def check():
    for a, e in zip(results(), wanted, strict=True):
        torch.testing.assert_close(a.flatten()[::50], e.flatten()[::50])

wanted = results()
"""
    + FORK.replace("torch.testing.assert_close(results()[::10, :1, ::50], wanted)", "check()"),
}


def run(program: str, name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START + program, name],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # set_num_threads would start one
    )
    try:
        _, errors = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail("the child waits for threads that are not there")
    assert process.returncode == 0, errors


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_child_of_a_process_with_threads(name):
    run(PROGRAMS["fork"], name)


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "fork"])
def test_in_other_ways(program):
    run(PROGRAMS[program], "GRU")


THREADS = """
def threads():
    return len(os.listdir("/proc/self/task"))

def child():
    before = threads()
    results()
    os._exit(threads() - before)

def started_in_child():
    pid = os.fork()
    if pid == 0:
        child()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert started_in_child() == 1  # no thread has run yet: the child has its own
results()
assert started_in_child() == 0
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are not to be seen")
def test_a_child_of_a_process_without_threads_has_its_own():
    run(THREADS, "GRU")


BUSY = """
import os, sys, threading, time, torch, fastrnn
from fastrnn.call import Call
torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
layer = fastrnn.Recurrent(fastrnn.zoo.PeepholeLSTM, 1, 1)
x = zeros = torch.zeros(1, 1, 1)
names, weights = layer._named_weights_(x, None, None)
call = Call(x, None, zeros, zeros, [w.detach() for w in weights], layer.mode, names)

def run():
    while True:
        torch.ops.fastrnn.layer_inference.default(*call)

for _ in range(4):
    threading.Thread(target=run, daemon=True).start()
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        with torch.no_grad():
            layer(x)
        os._exit(0)
    end = time.time() + 30
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.time() > end:
            os.kill(pid, 9)
            os._exit(1)
        time.sleep(5e-4)
os._exit(0)
"""


def test_a_fork_beside_threads_that_run_a_cell_of_a_function():
    """Whose program they look up: the child must not find that locked for ever."""
    assert subprocess.run([sys.executable, "-c", BUSY]).returncode == 0
