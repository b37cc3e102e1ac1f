"""The gateway's access log, in front of a fabric without a broker."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.common.accesslog import AccessLog, Line
from zmq_offload.errors import NotFound, OffloadError
from zmq_offload.gateway.accesslog import LoggingFabric
from zmq_offload.gateway.calls import Call, Outputs
from zmq_offload.protocol.packed import pack

INPUTS = pack({"x": np.zeros((3, 2), np.float32)})


class Bench:
    def __init__(self, threshold: float = 0.0, run: Any = None) -> None:
        self.inner = FakeFabric(model("m"), run=run)
        self.now = 10.0
        self.lines: list[Line] = []
        self.outcomes: list[Outputs | OffloadError] = []
        self.fabric = LoggingFabric(
            self.inner, AccessLog(threshold), lambda access: self.lines.extend(access.take()), lambda: self.now
        )

    def infer(self, call: Call) -> Any:
        return self.fabric.infer(call, ALL, self.outcomes.append)


def test_a_request_is_logged_with_its_protocols_id_and_its_trace() -> None:
    bench = Bench()
    bench.infer(Call("m", None, INPUTS, trace=bytes(range(25)), id="mine"))
    (line,) = bench.lines
    assert line.fields["request"] == "mine" and line.fields["trace"] == bytes(range(16)).hex()
    assert line.fields["status"] == "OK" and line.fields["version"] and line.fields["bytes_in"] > 24  # type: ignore[operator]
    assert len(bench.outcomes) == 1
    assert bench.fabric.statistics is bench.inner.statistics and bench.fabric.stopping == bench.inner.stopping


def test_a_quick_request_is_not_but_a_failed_one_is() -> None:
    quick = Bench(threshold=1.0)
    quick.infer(Call("m", None, INPUTS))
    assert not quick.lines and len(quick.outcomes) == 1
    failed = Bench(1.0, run=lambda *_: NotFound("none"))
    failed.infer(Call("m", None, INPUTS, caller="me"))
    (line,) = failed.lines
    assert line.fields["status"] == "NOT_FOUND" and line.fields["client"] == "me" and "request" not in line.fields


def test_a_canceled_request_is_logged_once() -> None:
    bench = Bench()
    bench.inner.hold = True
    cancel = bench.infer(Call("m", None, INPUTS))
    cancel()
    cancel()
    assert [line.fields["status"] for line in bench.lines] == ["CANCELLED"]
