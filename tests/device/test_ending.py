"""Programs that end while threads are in TVM: if Python unwinds the stacks of those threads, the process aborts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT
from zmq_offload.compile import Compiled

PROGRAM = """
import sys, threading, time
import numpy as np
from zmq_offload.device.model import load
x = np.ones((1, 1448), "f4")
def new(mode, timeout=None):
    return load(sys.argv[1], broker="tcp://127.0.0.1:9", offload=mode, timeout=timeout)
def in_background(work):
    threading.Thread(target=work, daemon=True).start()
def for_ever(work):
    while True:
        work()
local, waiting, late = new("never"), new("always"), new("always", 1.0)
local(x)
in_background(lambda: for_ever(lambda: local(x)))  # is in TVM, and calls back
in_background(lambda: waiting(x))  # waits for a worker below TVM, until it is canceled
in_background(lambda: late(x))  # and one that fails while the interpreter finalizes
in_background(lambda: list(waiting.map([x] * 9, depth=2)))
runs = [local.submit(x) for _ in range(20)]  # may wait for their turn
begun = local.map([x] * 100, depth=2)
next(begun)
frame = waiting.submit(x)
class Slow:
    def __del__(self, sleep=time.sleep, cancel=frame.cancel):  # which other threads use
        cancel()
        sleep(0.8)
time.sleep(0.2)
slow = Slow()
END
"""


@pytest.mark.parametrize(
    ("end", "code", "said"), [("sys.exit(3)", 3, ""), ("raise ValueError('the user')", 1, "ValueError: the user")]
)
def test_a_program_ends_as_it_wants_while_threads_are_in_tvm(
    compiled_wide: Compiled, end: str, code: int, said: str
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.replace("END", end), str(compiled_wide.device)]
    # TVM's threads spin before they end. On a busy machine that takes seconds.
    environment = os.environ | {"TVM_NUM_THREADS": "2", "TVM_THREAD_POOL_SPIN_COUNT": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().endswith(said), done.stderr
    assert done.stderr.count("Traceback") == (1 if said else 0), done.stderr
