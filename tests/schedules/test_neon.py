"""The innermost loops of products for NEON: multiply-adds by a lane, one load for four steps of a sum, no spills."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import tvm
from onnx import helper

from tests.schedules.assembly import innermost_loops, scalar_arithmetic
from tests.schedules.schedule_harness import HOST, Net
from tests.schedules.test_hot_loops import assembly
from tests.schedules.test_symbolic import check
from zmq_offload.compile import pipeline
from zmq_offload.schedules.machine import machine_of

TARGET = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 1})


def _convolution(net: Net) -> str:
    return str(net.op("Conv", net.input(1, 64, 24, 24), net.weight(64, 64, 3, 3), pads=[1] * 4))


def _pointwise(net: Net) -> str:
    return str(net.op("Conv", net.input(1, 96, 28, 28), net.weight(24, 96, 1, 1)))


def _transposed(net: Net) -> str:
    return str(net.op("ConvTranspose", net.input(1, 64, 24, 24), net.weight(64, 32, 2, 2), strides=[2, 2]))


def _dense(net: Net) -> str:
    return str(net.op("MatMul", net.input(128, 384), net.weight(384, 384)))


def _matmul(net: Net) -> str:
    return str(net.op("MatMul", net.input(6, 96, 64), net.input(6, 64, 96)))


# The most vectors of results that a tile may have, and so multiply-adds in four steps.
PRODUCTS: dict[str, tuple[Callable[[Net], str], int]] = {
    "convolution": (_convolution, 96),
    "pointwise convolution": (_pointwise, 84),
    "transposed convolution": (_transposed, 96),
    "dense": (_dense, 96),
    "matmul": (_matmul, 96),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_one_load_of_a_row_serves_four_steps(product: str) -> None:
    make, most = PRODUCTS[product]
    net = Net()
    loops = innermost_loops(assembly(net, [make(net)], TARGET))
    hot = max(loops, key=_multiply_adds)
    assert _multiply_adds(hot) == most
    by_lane = sum(bool(re.match(r"\s+fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[\d\]", line)) for line in hot)
    assert by_lane == most
    assert not _spills(hot)
    # The pairs of vectors of weights, a vector of each row, and what the loop itself takes.
    assert len(hot) <= 1.25 * most
    assert not [line for loop in loops for line in scalar_arithmetic(loop)]


def test_a_depthwise_convolution_keeps_its_results_in_registers() -> None:
    net = Net()
    x, weight = net.input(1, 64, 32, 32), net.weight(64, 1, 3, 3)
    hot = max(
        innermost_loops(assembly(net, [net.op("Conv", x, weight, pads=[1] * 4, group=64)], TARGET)), key=_multiply_adds
    )
    assert _multiply_adds(hot) == 8 * 9
    assert not _spills(hot)
    assert not scalar_arithmetic(hot)


def test_sums_of_any_depth_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops for NEON, run by this machine: groups of four steps, steps after them, and too few for a group."""
    monkeypatch.setattr(pipeline, "machine_of", lambda target: machine_of(TARGET))
    net = Net()
    net.check(
        net.op("MatMul", net.input(13, 66), net.weight(66, 21)),
        net.op("MatMul", net.input(2, 7, 8), net.input(2, 8, 19)),
        net.op("Conv", net.input(1, 3, 9, 9), net.weight(21, 3, 3, 3), pads=[1] * 4),
        net.op("Conv", net.input(1, 7, 9, 9), net.weight(18, 7, 2, 2), dilations=[2, 2]),
        net.op("ConvTranspose", net.input(1, 3, 5, 5), net.weight(3, 6, 2, 2), strides=[2, 2]),
    )


def test_sums_of_symbolic_depth_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "machine_of", lambda target: machine_of(TARGET))
    inputs: dict[str, list[int | str]] = {"x": [9, "k"], "q": ["k", 21]}
    check(HOST, [helper.make_node("MatMul", ["x", "q"], ["y"])], inputs, [{"k": 3}, {"k": 8}, {"k": 21}])


def _multiply_adds(loop: list[str]) -> int:
    return sum(bool(re.match(r"\s+fmla\s+v\d+\.4s", line)) for line in loop)


def _spills(loop: list[str]) -> list[str]:
    """Loads from the stack and stores to it."""
    return [line.strip() for line in loop if re.match(r"\s+(ldr|ldp|str|stp|ldur|stur)\s.*\[sp", line)]
