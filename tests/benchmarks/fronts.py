"""What metrics and traces add to a gateway's request: `python -m tests.benchmarks.fronts`.

A fabric that answers at once stands in for broker and workers. In front of it is what counts requests, what traces 1 %
of them, both, or nothing, in turns. Prints the CPU time of a request: the least of the turns, as a busy machine only
adds to it. `python -m tests.benchmarks.observed` has the rest of what it costs to be looked at.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import numpy as np

from zmq_offload.client.results import Timings
from zmq_offload.gateway.access.decisions import ANYONE
from zmq_offload.gateway.calls import Call, Cancel, Ended, Fabric, Outputs
from zmq_offload.gateway.front import Front
from zmq_offload.gateway.metered import MeteredFabric
from zmq_offload.gateway.meters import Meters
from zmq_offload.gateway.tracing import TracingFabric
from zmq_offload.net.grants import Grant
from zmq_offload.protocol.packed import pack

X = pack({"x": np.zeros(1024, np.uint8)})
CALL = Call("echo", None, X)
ANSWER = Outputs(X, "echo", 1, Timings(0.0001, 0.0002, 0.0001, 0.0005))
WHAT = ((), ("metrics",), ("traces",), ("metrics", "traces"))


class Answering(Front):
    """Holds a request until it is told to answer."""

    ended: Ended

    def __init__(self) -> None:
        pass

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        self.ended = ended
        return _nothing


def _nothing() -> None:
    """Takes nothing back."""


def _taken(outcome: object) -> None:
    """The caller has its answer."""


def turn(kinds: Sequence[str], requests: int) -> float:
    """The CPU time of a request, in seconds."""
    answering = Answering()
    fabric: Fabric = answering
    if "traces" in kinds:
        fabric = TracingFabric(fabric, 0.01, _taken, time.monotonic, random.randbytes, random.getrandbits)
    if "metrics" in kinds:
        fabric = MeteredFabric(fabric, Meters(), "http")
    infer = fabric.infer
    began = time.process_time()
    for _ in range(requests):
        infer(CALL, ANYONE, _taken)
        answering.ended(ANSWER)
    return (time.process_time() - began) / requests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fronts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=50, help="of each [50]")
    parser.add_argument("--requests", type=int, default=3000, help="in a turn [3000]")
    given = parser.parse_args()
    least = dict.fromkeys(WHAT, float("inf"))
    for _ in range(given.turns):
        for kinds in WHAT:
            least[kinds] = min(least[kinds], turn(kinds, given.requests))
    for kinds, seconds in least.items():
        print(f"{' + '.join(kinds) or 'nothing'}: {seconds * 1e6:.2f} us")


if __name__ == "__main__":
    main()
