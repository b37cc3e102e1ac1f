"""Each rule computes what ONNX Runtime computes, over random shapes, vector widths and epilogues."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from tests.schedules.schedule_harness import HOST, TARGETS, Net
from tests.support.examples import examples

few = examples(8)
targets = st.sampled_from(TARGETS)
channels = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 24, 31, 40])
activations = st.lists(
    st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Erf", "Exp", "LeakyRelu", "Clip", "Scale", "Gate"]),
    max_size=3,
).filter(lambda names: names.count("Exp") < 2)  # e^(e^x) magnifies earlier rounding a hundred times


def finish(net: Net, y: str, names: list[str]) -> str:
    """An epilogue; `Gate` multiplies by a mean over the channel, as squeeze-and-excite does."""
    for name in names:
        if name == "Clip":
            y = net.op("Clip", y, net.constant(-0.5), net.constant(0.7))
        elif name == "Scale":
            y = net.op("Div", net.op("Mul", y, net.op("Sigmoid", y)), net.constant(3.0))
        elif name == "Gate":
            y = net.op("Mul", y, net.op("GlobalAveragePool", y))
        else:
            y = net.op(name, y)
    return y


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Net, str]:
    net = Net(draw(st.integers(0, 99)))
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    kind = draw(st.sampled_from(["dense", "dense", "pointwise", "depthwise", "grouped"]))
    groups = {"depthwise": draw(channels), "grouped": draw(st.sampled_from([2, 3, 4]))}.get(kind, 1)
    ic = groups * (1 if kind == "depthwise" else draw(channels))
    oc = groups * (draw(st.sampled_from([1, 1, 2])) if kind == "depthwise" else draw(channels))
    kernel = [1 if kind == "pointwise" else draw(st.sampled_from([1, 2, 3, 5])) for _ in range(rank)]
    strides = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)]
    dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(rank)]
    pads = [draw(st.sampled_from([0, 1, 2])) for _ in range(2 * rank)] if kind != "pointwise" else [0] * (2 * rank)
    size = [draw(st.sampled_from([1, 2, 5, 7, 13, 30])) + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    net.dynamic_batch = draw(st.booleans())
    x = net.input(draw(st.sampled_from([1, 1, 2, 3])), ic, *size)
    bias = [net.weight(oc)] if draw(st.booleans()) else []
    y = net.op(
        "Conv",
        x,
        net.weight(oc, ic // groups, *kernel, scale=0.3),
        *bias,
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=groups,
        kernel_shape=kernel,
    )
    y = finish(net, y, draw(activations))
    return net, net.op("Add", y, y) if draw(st.booleans()) else y


@examples(20)
@given(convolutions(), targets)
def test_convolution(case: tuple[Net, str], target: Any) -> None:
    net, out = case
    net.check(out, target=target)


@few
@given(st.data(), targets)
def test_transposed_convolution(data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    kernel = [draw(st.integers(1, 5)) for _ in "hw"]
    strides = [draw(st.sampled_from([1, 2, 2, 3])) for _ in "hw"]
    extra = [draw(st.integers(0, s - 1)) for s in strides]
    pads = [draw(st.integers(0, 1)) for _ in range(4)]
    size = [draw(st.sampled_from([2, 3, 5, 9])) for _ in "hw"]
    if any(
        (n - 1) * s + k <= pads[i] + pads[i + 2] for i, (n, s, k) in enumerate(zip(size, strides, kernel, strict=True))
    ):
        pads = [0] * 4
    ic, oc = draw(channels), draw(channels)
    y = net.op(
        "ConvTranspose",
        net.input(draw(st.integers(1, 2)), ic, *size),
        net.weight(ic, oc, *kernel, scale=0.3),
        strides=strides,
        pads=pads,
        output_padding=extra,
        kernel_shape=kernel,
    )
    net.check(finish(net, y, draw(activations)), target=target)


@examples(16)
@given(st.data(), targets)
def test_product(data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    m, k, n = (draw(st.sampled_from([1, 2, 3, 7, 8, 16, 17, 33, 64, 100])) for _ in "mkn")
    batch = draw(st.sampled_from([[], [1], [3], [2, 3], [1, 2]]))
    net.dynamic_batch = bool(batch) and draw(st.booleans())
    a = net.input(*batch, m, k)
    if draw(st.booleans()):
        y = net.op("MatMul", a, net.weight(k, n, scale=k**-0.5))
    else:
        net.dynamic_batch = False
        y = net.op("MatMul", a, net.input(*draw(st.sampled_from([batch, [1] * len(batch), []])), k, n))
    if draw(st.booleans()):
        y = net.op("Add", y, net.weight(n))
    net.check(finish(net, y, [a for a in draw(activations) if a != "Gate"]), target=target)


@few
@given(st.data(), targets)
def test_pooling(data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    count = draw(channels)
    x = net.input(draw(st.integers(1, 2)), count, draw(st.sampled_from([3, 7, 10])), draw(st.sampled_from([3, 5, 12])))
    if draw(st.booleans()):
        x = net.op("Conv", x, net.weight(17, count, 1, 1))
    kind = draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"]))
    attributes: dict[str, Any] = {}
    if not kind.startswith("Global"):
        kernel = [draw(st.integers(1, 3)) for _ in "hw"]
        attributes = {"kernel_shape": kernel, "strides": [draw(st.integers(1, 3)) for _ in "hw"]}
        attributes["pads"] = [k // 2 for k in kernel] * 2
        if kind == "AveragePool":
            attributes["count_include_pad"] = draw(st.integers(0, 1))
    net.check(net.op(kind, x, **attributes), target=target)


@examples(20)
@given(st.data(), targets)
def test_chains(data: st.DataObject, target: Any) -> None:
    """Transposes, concatenations, paddings, reductions, normalizations and broadcasts, one after the other."""
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 33]), min_size=2, max_size=4))
    x = net.input(*shape)
    for _ in range(draw(st.integers(1, 3))):
        x, shape = step(draw, net, x, shape)
    net.check(x, target=target)


def step(draw: st.DrawFn, net: Net, x: str, shape: list[int]) -> tuple[str, list[int]]:
    """Add an operator; return its output and shape."""
    kind = draw(st.sampled_from(["transpose", "concat", "pad", "map", "reduce", "softmax", "norm", "add", "reshape"]))
    rank = len(shape)
    if kind == "transpose" and rank:
        perm = draw(st.permutations(range(rank)))
        return net.op("Transpose", x, perm=list(perm)), [shape[i] for i in perm]
    if kind == "concat" and rank:
        axis = draw(st.integers(0, rank - 1))
        parts = [x, net.op("Tanh", x), net.weight(*shape)]
        return net.op("Concat", *parts, axis=axis), [s * (3 if i == axis else 1) for i, s in enumerate(shape)]
    if kind == "pad" and rank:
        widths = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
        padded = [s + widths[i] + widths[i + rank] for i, s in enumerate(shape)]
        return net.op("Pad", x, net.constant(widths), net.constant(0.5)), padded
    if kind == "reduce" and rank:
        axes = sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
        keep = draw(st.integers(0, 1))
        name = draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]))
        rest = [1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes]
        return net.op(name, x, axes=axes, keepdims=keep), rest
    if kind == "softmax" and rank:
        return net.op(draw(st.sampled_from(["Softmax", "LogSoftmax"])), x, axis=draw(st.integers(0, rank - 1))), shape
    if kind == "norm" and rank:
        last = shape[-1]
        return net.op("LayerNormalization", x, net.weight(last), net.weight(last), axis=-1, epsilon=1e-2), shape
    if kind == "add" and rank:
        other = net.weight(*[s if draw(st.booleans()) else 1 for s in shape])
        return net.op(draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), x, other), shape
    if kind == "reshape":
        total = prod(shape)
        first = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        return net.op("Reshape", x, net.constant([first, total // first])), [first, total // first]
    return net.op(draw(st.sampled_from(["Exp", "Erf", "Sigmoid", "Abs", "Relu"])), x), shape


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@few
@given(data=st.data(), target=targets)
def test_resize(mode: str, data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    count = draw(channels)
    x = net.op("Conv", net.input(1, count, 4, draw(st.integers(3, 7))), net.weight(18, count, 1, 1))
    how = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    scale = draw(st.sampled_from([2.0, 3.0]))
    factors = net.constant(np.array([1, 1, scale, scale], "float32"))
    y = net.op("Resize", x, "", factors, mode=mode, **(how if mode == "nearest" else {}))
    net.check(finish(net, y, draw(activations)), target=target)


@pytest.mark.parametrize("kind", ["Exp", "Sigmoid", "Tanh", "Erf"])
def test_functions_keep_special_values_and_precision(kind: str) -> None:
    net = Net()
    x = net.input(3, 1001)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 88.7, 88.8, -87.0, -104.0, 1e30, -1e30]
    values = np.concatenate([special, np.linspace(-20, 20, 3003 - len(special))])
    net.inputs["x0"] = values.reshape(3, 1001).astype("float32")
    net.check(net.op(kind, x), target=HOST, tolerance=2e-6)


def test_nan_reaches_only_what_depends_on_it() -> None:
    """Weights of zero, padded channels and zeros beyond the edge do not spread NaN or infinity."""
    net = Net()
    x = net.input(1, 5, 9, 9)
    net.inputs["x0"][0, 2, 4, 4] = np.nan
    net.inputs["x0"][0, 1, 0, 8] = np.inf
    y = net.op("Conv", x, net.weight(7, 5, 3, 3), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    z = net.op("ConvTranspose", x, net.weight(5, 3, 3, 3), strides=[2, 2], kernel_shape=[3, 3])
    net.check(y, z)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.attrs["mcpu"]))
@pytest.mark.parametrize("kind", ["And", "Or", "Xor"])
def test_bools_in_a_chain(kind: str, target: tvm.target.Target) -> None:
    net = Net()
    zero = net.constant(np.zeros(1, "float32"))
    above = [net.op("Greater", net.input(3, 37), zero) for _ in "ab"]
    mixed = net.op("Not", net.op(kind, net.op("Not", above[0]), above[1]))
    net.check(net.op("Cast", mixed, to=TensorProto.FLOAT), net.op("Where", mixed, "x0", "x1"), target=target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.attrs["mcpu"]))
def test_bools_are_copied(target: tvm.target.Target) -> None:
    # As in masks of attention: each result is a bool tensor of its own.
    net = Net()
    a, b = (net.input(4, 64) for _ in "ab")
    net.inputs = {name: value > 0 for name, value in net.inputs.items()}
    joined = net.op("Concat", a, b, axis=1)
    kept = net.op("And", a, net.constant(np.tril(np.ones((4, 64), bool))))
    copies = [
        net.op("Expand", kept, net.constant([2, 3, 4, 64])),
        net.op("Slice", joined, *(net.constant([i]) for i in (2, 90, 1))),
        net.op("Gather", joined, net.constant([5, 0, 40]), axis=1),
        net.op("Transpose", joined, perm=[1, 0]),
        net.op("Tile", a, net.constant([2, 1])),
    ]
    net.check(*copies, target=target, kind=TensorProto.BOOL)


@few
@given(st.data(), targets)
def test_running_sums(data: st.DataObject, target: Any) -> None:
    """Sums along the last axis are TVM's; the others have vectors of columns."""
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 17, 40]), min_size=2, max_size=4))
    axis = net.constant([draw(st.integers(-len(shape), len(shape) - 1))])
    options = {"exclusive": draw(st.integers(0, 1)), "reverse": draw(st.integers(0, 1))}
    net.check(net.op("CumSum", net.input(*shape), axis, **options), target=target)
