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
from tests.support.forks import in_child
from zmq_offload.byoc.model import load
NOBODY = "tcp://127.0.0.1:9"
x = np.ones((1, 1448), "f4")
def new(mode="never"):
    return load(sys.argv[1], broker=NOBODY, offload=mode)
"""
RAN = (
    "FailedPrecondition: TVM ran in this process before it was forked, and its threads are not in the child: load and "
    "run models only after the fork, or start processes by spawn"
)
OLD = (
    "FailedPrecondition: this model was made before a fork; make it after the fork, in each process, or start "
    "processes by spawn"
)

AFTER_A_RUN = """
model, waiting = new(), new("always")
model(x), model(x)
frame = waiting.submit(x)
stream = waiting.map([x] * 3, depth=2)
threading.Thread(target=lambda: list(waiting.map([x], return_exceptions=True)), daemon=True).start()
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
    print(in_child(work))
print(model(x).shape)
frame.cancel(), model.close(), waiting.close()
"""

BEFORE_A_RUN = """
def own():
    with new() as mine:
        return mine(x).shape, [y.shape for y in mine.map([x, x])], mine.submit(x).result().shape
model, other = new(), new("always")
for work in (lambda: model(x).shape, lambda: [y.shape for y in model.map([x, x])], lambda: other(x), own):
    print(in_child(work))
print(own())
model.close(), other.close()
"""


def run(code: str, compiled: Compiled) -> list[str]:
    command = [sys.executable, "-c", HEAD + code, str(compiled.device)]
    environment = os.environ | {"TVM_NUM_THREADS": "2"}
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


@pytest.mark.parametrize("wrap", ["model", "(lambda m: (m, m))(model)"])
def test_a_model_that_is_dropped_gives_its_client_back_and_one_warning(compiled_wide: Compiled, wrap: str) -> None:
    code = """
import os, warnings
class Circle: pass
def files(): return len(os.listdir("/proc/self/fd"))
def drop(n):
    model = new()
    model(x)
    stream = model.map([x] * 5)
    next(stream)
    circle = Circle(); circle.me, circle.it = circle, WRAP
warnings.simplefilter("ignore"); drop(0); gc.collect()
before = files()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for n in range(5):
        drop(n)
        gc.collect()
    texts = [str(w.message) for w in caught]
    del caught[:]
print(len(texts), {t.partition(" (")[0] for t in texts}, files() <= before)
"""
    assert run(code.replace("WRAP", wrap), compiled_wide) == ["5 {'unclosed <OffloadedModel'} True"]
