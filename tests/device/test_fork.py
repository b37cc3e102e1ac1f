"""Models in forked children. In processes of their own: TVM must not have run, or must have run with two threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT
from zmq_offload.compile import Compiled

HEAD = """
import gc, sys, threading
import numpy as np
import zmq_offload
from tests.support.forks import run_in_fork
from zmq_offload.device.model import load
NOBODY = "tcp://127.0.0.1:9"
x = np.ones((1, 1448), "f4")
def new(mode="never"):
    return load(sys.argv[1], broker=NOBODY, offload=mode)
"""
RAN = (
    "FailedPrecondition: TVM ran in this process before it was forked, and its threads are not in the child: load and "
    "run models only after the fork, or start processes by spawn"
)
OLD = "FailedPrecondition: this model was made before a fork; make one in each process, or start processes by spawn"

AFTER_A_RUN = """
model, waiting = new(), new("always")
model(x), model(x)
frame = waiting.submit(x)
stream = waiting.map([x] * 3, depth=2)
other = threading.Thread(target=lambda: list(waiting.map([x], return_exceptions=True)), daemon=True)
other.start()
def dropped():
    global model
    del model
    gc.collect()
    return "dropped"
for work in (
    lambda: model(x), lambda: model.submit(x), lambda: model.map([x]), lambda: model.amap([x]), lambda: waiting(x),
    lambda: next(stream), frame.result, new, model.close, lambda: model.__exit__(), dropped,
    lambda: repr(waiting).rpartition(": ")[2],
):
    print(run_in_fork(work))
print(model(x).shape)
frame.cancel(), model.close(), waiting.close()
other.join(20)
"""

BEFORE_A_RUN = """
def own():
    with new() as mine:
        return mine(x).shape, [y.shape for y in mine.map([x, x])], mine.submit(x).result().shape
model, other = new(), new("always")
for work in (lambda: model(x).shape, lambda: [y.shape for y in model.map([x, x])], lambda: other(x), own):
    print(run_in_fork(work))
print(own())
model.close(), other.close()
"""


def run(code: str, compiled: Compiled, threads: int = 2) -> list[str]:
    command = [sys.executable, "-c", HEAD + code, str(compiled.device)]
    environment = os.environ | {"TVM_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_after_the_parent_ran_a_model_children_are_refused_at_once(compiled_wide: Compiled) -> None:
    refused = [OLD] * 7
    let_go = ["None", "None", "dropped", "made before a fork>"]
    assert run(AFTER_A_RUN, compiled_wide) == [*refused, RAN, *let_go, "(1, 1448)"]


def test_before_it_ran_one_children_run_their_own_and_what_needs_no_client(compiled_wide: Compiled) -> None:
    own = "((1, 1448), [(1, 1448), (1, 1448)], (1, 1448))"
    expected = ["(1, 1448)", "[(1, 1448), (1, 1448)]", OLD, own, own]
    assert run(BEFORE_A_RUN, compiled_wide) == expected


def test_after_the_parent_ran_an_uncut_model_children_are_refused_at_once(compiled_wide: Compiled) -> None:
    code = """
from pathlib import Path
from zmq_offload.compile.uncut import UncutModel, compile_uncut
onnx = Path(sys.argv[1]).parent / "m.onnx"
library = Path(sys.argv[1]).parent / "uncut.so"
compile_uncut(onnx, library)
uncut = UncutModel(library)
uncut(x)
for work in (lambda: uncut(x), new):
    print(run_in_fork(work))
"""
    assert run(code, compiled_wide) == [RAN, RAN]


def test_a_model_that_is_dropped_gives_its_client_back_and_one_warning(compiled_wide: Compiled) -> None:
    """Whether the circle has it once or twice."""
    code = """
import os, warnings
class Circle: pass
def files(): return len(os.listdir("/proc/self/fd"))
def drop(times):
    model = new()
    model(x)
    stream = model.map([x] * 5)
    next(stream)
    circle = Circle(); circle.me, circle.it = circle, (model,) * times
warnings.simplefilter("ignore"); drop(1); gc.collect()
before = files()
for times in (1, 2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(5):
            drop(times)
            gc.collect()
        texts = [str(w.message) for w in caught]
        del caught[:]
    print(len(texts), {t.partition(" (")[0] for t in texts}, files() <= before)
"""
    assert run(code, compiled_wide) == ["5 {'unclosed <OffloadedModel'} True"] * 2


ENDS = """
import atexit, os, signal, time
model = new()
def child(end):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        # Threads of the child get the stacks of threads that are not there. (They keep a process that ends by its
        # thread's end.)
        for _ in range(0 if threading.current_thread().name == "other" else 3):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        atexit.register(os.write, write, b"at exit")
        end()
        raise AssertionError
    os.close(write)
    late = threading.Timer(30, os.kill, (pid, signal.SIGKILL))
    late.start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    late.cancel()
    print(code, os.read(read, 9), flush=True)
def fail():
    sys.stderr.close()
    raise ValueError
def later(): # a child of the child
    if pid := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    sys.exit(5)
"""

IN_MAIN = """
model(x)
time.sleep(0.5)  # TVM's threads spin for a while before they wait
for end in (sys.exit, lambda: sys.exit(3), lambda: sys.exit(4), fail, later):
    child(end)
print(model(x).shape)
"""

IN_A_THREAD = """
def work():
    model(x)
    time.sleep(0.5)
    for _ in range(2):
        child(sys.exit)
    print(model(x).shape)
def idle():
    child(sys.exit)
for target in (work, idle):
    thread = threading.Thread(target=target, name="other")
    thread.start()
    thread.join()
model.close()
"""


@pytest.mark.parametrize("threads", [2, 5])
def test_a_child_of_a_thread_that_ran_a_model_ends_with_its_own_exit_code(
    compiled_wide: Compiled, threads: int
) -> None:
    ended = ["0 b'at exit'", "3 b'at exit'", "4 b'at exit'", "1 b'at exit'", "5 b'at exit'", "(1, 1448)"]
    of_a_thread = ["0 b''", "0 b''", "(1, 1448)"]
    of_a_thread_that_ran_none = ["0 b''"]
    assert run(ENDS + IN_MAIN + IN_A_THREAD, compiled_wide, threads) == [
        *ended,
        *of_a_thread,
        *of_a_thread_that_ran_none,
    ]
