"""Taps of a convolution that read only padding are dropped, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import HOST, TARGETS, Net
from tests.support.examples import examples
from zmq_offload.schedules.images import reaching
from zmq_offload.schedules.layout import channels_last
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.reach import needed_taps

small = st.integers(1, 9)


@settings(max_examples=300, deadline=None)
@given(size=small, kernel=small, stride=small, dilation=small, before=st.integers(0, 40), results=small)
def test_needed_taps(size: int, kernel: int, stride: int, dilation: int, before: int, results: int) -> None:
    inside = [t for t in range(kernel) if any(0 <= o * stride + t * dilation - before < size for o in range(results))]
    taps = needed_taps(size, kernel, stride, dilation, before, results)
    assert list(taps) == (list(range(inside[0], inside[-1] + 1)) if inside else [])


@settings(max_examples=100, deadline=None)
@given(kernel=small, dilation=small, size=small, first=st.integers(-40, 12), more=st.integers(0, 5))
def test_reaching(kernel: int, dilation: int, size: int, first: int, more: int) -> None:
    start, count = (
        int(tvm.sym.Analyzer().simplify(e).value)
        for e in reaching(kernel, dilation, size, *(tirx.IntImm("int64", v) for v in (first, first + more)))
    )
    reached = [t for t in range(kernel) if any(0 <= p + t * dilation < size for p in range(first, first + more + 1))]
    assert set(reached) <= set(range(start, start + count))
    for t in range(start, start + count):
        assert first + more + t * dilation >= 0 and first + t * dilation < size


@st.composite
def dilated(draw: st.DrawFn) -> tuple[Net, str]:
    net = Net(draw(st.integers(0, 99)))
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 8]))
    ic, oc = groups * draw(st.sampled_from([1, 3, 5])), groups * draw(st.sampled_from([1, 2, 17]))
    kernel = [draw(st.sampled_from([1, 2, 3, 5])) for _ in range(rank)]
    dilations = [draw(st.sampled_from([1, 3, 6, 12, 24])) for _ in range(rank)]
    # "Same" padding, and padding on one side only, where whole rows of the image are not read.
    spread = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    before = [draw(st.sampled_from([s // 2, s // 2, 0, s, s + 3])) for s in spread]
    after = [max(0, s - b) + draw(st.sampled_from([0, 0, 2])) for s, b in zip(spread, before, strict=True)]
    net.dynamic_batch = draw(st.booleans())
    x = net.input(1, ic, *(draw(st.sampled_from([1, 2, 4, 7, 16])) for _ in range(rank)))
    y = net.op(
        "Conv",
        x,
        net.weight(oc, ic // groups, *kernel, scale=0.3),
        strides=[draw(st.sampled_from([1, 1, 2])) for _ in range(rank)],
        dilations=dilations,
        pads=[*before, *after],
        group=groups,
        kernel_shape=kernel,
    )
    return net, net.op("Relu", y)


@examples(14)
@given(dilated(), st.sampled_from(TARGETS))
def test_dilated_convolution(case: tuple[Net, str], target: Any) -> None:
    net, out = case
    net.check(out, target=target)


@pytest.mark.parametrize(
    ("kernel", "dilation", "left"),
    [((3, 3), (24, 24), 1), ((3, 3), (24, 1), 3), ((3, 3), (6, 6), 9), ((5, 5), (12, 12), 9)],
)
def test_weights_of_idle_taps_are_gone(kernel: tuple[int, int], dilation: tuple[int, int], left: int) -> None:
    net = Net()
    pads = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    y = net.op("Conv", net.input(1, 4, 16, 16), net.weight(16, 4, *kernel), dilations=dilation, pads=pads * 2)
    mod = channels_last(from_onnx(net.model(y), keep_params_in_input=False), machine_of(HOST))
    mod = relax.transform.DeadCodeElimination()(mod)
    sizes = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, tvm.ir.GenericConst):
            sizes.append(expr.value.numpy().size)

    relax.analysis.post_order_visit(mod["main"], visit)
    assert sizes == [left * 4 * 16]
