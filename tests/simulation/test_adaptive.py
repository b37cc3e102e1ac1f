"""Adaptive bundles on links that change, in simulated time."""

from __future__ import annotations

import pytest

from tests.simulation.adaptive import MODELS, World, controlled, described, oracle, passes, row, static
from zmq_offload.testing.link.trace import Trace


def test_bytes_pass_at_the_rates_of_the_trace_and_wait_for_the_end_of_a_stall() -> None:
    trace = Trace.parse("seconds,up,down,delay,stall\n0,8,8,10,0\n1,0,0,10,1\n2,80,8,20,0\n", "t")
    assert passes(trace, 500_000, 0.0, "up") == pytest.approx(0.51)
    assert passes(trace, 1_000_000, 0.5, "up") == pytest.approx(2.07), (
        "half before the stall, half after it at ten times"
    )
    assert passes(trace, 0, 1.5, "up") == pytest.approx(1.51)


@pytest.mark.parametrize("trace", ["steady-5g", "busy-wifi", "train"])
@pytest.mark.parametrize("model", MODELS)
def test_the_controller_is_near_the_oracle(model: str, trace: str) -> None:
    """The whole table has the goals; a minute of a trace is short for a controller that has to learn."""
    found = row(model, trace, 3.0, 60.0, 5, local=True)
    assert found.oracle.mean <= found.best.mean
    assert found.controller.mean <= 1.2 * found.oracle.mean
    if trace == "steady-5g":
        assert found.controller.changes == 0
    assert len(described([found], 60.0)) == 7


def test_a_sealed_bundle_waits_for_its_workers() -> None:
    world = World("classifier", Trace.named("train"), 3.0, 5)
    courses = [static(world, way, 60.0).mean for way in world.ways]
    assert oracle(world, 60.0, local=False).mean <= controlled(world, 60.0, local=False).mean <= 1.2 * min(courses)
