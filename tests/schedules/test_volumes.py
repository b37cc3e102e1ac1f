"""Three-dimensional convolutions and pools compute what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.schedule_harness import HOST, TARGETS, Net
from tests.support.examples import examples
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules.machine import machine_of
from zmq_offload.schedules.schedule import schedule

few = examples(8)
targets = st.sampled_from(TARGETS)
channels = st.sampled_from([1, 2, 3, 8, 17, 24, 33])


@st.composite
def volumes(draw: st.DrawFn) -> tuple[Net, str]:
    net = Net(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["dense", "dense", "pointwise", "depthwise", "grouped"]))
    groups = {"depthwise": draw(channels), "grouped": draw(st.sampled_from([2, 3]))}.get(kind, 1)
    ic = groups * (1 if kind == "depthwise" else draw(channels))
    oc = groups * (1 if kind == "depthwise" else draw(channels))
    point = kind == "pointwise"
    kernel = [1 if point else draw(st.sampled_from([1, 2, 3])) for _ in "dhw"]
    strides = [draw(st.sampled_from([1, 1, 2])) for _ in "dhw"]
    dilations = [draw(st.sampled_from([1, 1, 2, 5])) for _ in "dhw"]
    pads = [0 if point else draw(st.sampled_from([0, 1, 2, 5])) for _ in range(6)]
    least = [(k - 1) * d + 1 - pads[i] - pads[i + 3] for i, (k, d) in enumerate(zip(kernel, dilations, strict=True))]
    size = [max(1, n) + draw(st.sampled_from([0, 1, 4, 6])) for n in least]
    net.dynamic_batch = draw(st.booleans())
    x = net.input(draw(st.sampled_from([1, 1, 2])), ic, *size)
    y = net.op(
        "Conv",
        x,
        net.weight(oc, ic // groups, *kernel, scale=0.3),
        *([net.weight(oc)] if draw(st.booleans()) else []),
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=groups,
        kernel_shape=kernel,
    )
    return net, net.op("Relu", y) if draw(st.booleans()) else y


@examples(16)
@given(volumes(), targets)
def test_convolution(case: tuple[Net, str], target: Any) -> None:
    net, out = case
    net.check(out, target=target)


@few
@given(st.data(), targets)
def test_pool(data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    kernel = [draw(st.integers(1, 3)) for _ in "dhw"]
    strides = [draw(st.integers(1, 3)) for _ in "dhw"]
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    x = net.input(draw(st.integers(1, 2)), draw(channels), *(k + draw(st.integers(0, 5)) for k in kernel))
    options: dict[str, Any] = {"ceil_mode": draw(st.integers(0, 1))} if not any(pads) else {}
    if draw(st.booleans()):
        y = net.op("MaxPool", x, kernel_shape=kernel, strides=strides, pads=pads, **options)
    else:
        inside = draw(st.integers(0, 1))
        y = net.op("AveragePool", x, kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=inside)
    if draw(st.booleans()):
        y = net.op("GlobalAveragePool", y)
    net.check(net.op("Relu", y), target=target)


@pytest.mark.parametrize("groups", [1, 2, 24], ids=["dense", "grouped", "depthwise"])
def test_the_rules_take_volumes(groups: int) -> None:
    """No function keeps the generic loops: each has the copy of the padded window, or reads three taps of the depth."""
    net = Net()
    y = net.op("Conv", net.input(1, 24, 4, 6, 6), net.weight(24, 24 // groups, 3, 3, 3), pads=[1] * 6, group=groups)
    with HOST:
        mod = tvm.transform.Sequential(fusing(HOST))(from_onnx(net.model(y), keep_params_in_input=False))
    kernels = [f for f in mod.functions.values() if "zmq_offload.kernel" in f.script()]
    assert len(kernels) == 1
    done = schedule(kernels[0], machine_of(HOST))
    assert done is not None and "window" in done.script() and "total" in done.script()
