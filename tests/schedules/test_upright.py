"""Convolutions over images of one column, or a few: the same results, and the loops of those over one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx

from tests.schedules.integer_harness import convolved, extremes, module
from tests.schedules.schedule_harness import HOST, TARGETS, Net, compiled
from tests.schedules.test_example import inside
from tests.schedules.test_symbolic import check, weight
from tests.support.examples import examples
from zmq_offload.compile.pipeline import fusing
from zmq_offload.schedules import machine_of
from zmq_offload.schedules.layout import channels_last
from zmq_offload.schedules.schedule import schedule_pass

few = examples(6)
targets = st.sampled_from(TARGETS)


@st.composite
def narrow(draw: st.DrawFn) -> tuple[Net, str]:
    net = Net(draw(st.integers(0, 99)))
    width = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kind = draw(st.sampled_from(["dense", "dense", "depthwise", "grouped", "transposed", "as wide as the image"]))
    groups = {"depthwise": 17, "grouped": 2}.get(kind, 1)
    ic = groups * (1 if kind == "depthwise" else draw(st.sampled_from([1, 2, 8])))
    oc = ic if kind == "depthwise" else groups * draw(st.sampled_from([5, 40]))
    kernel = [draw(st.sampled_from([1, 3, 4])), width if kind.startswith("as") else draw(st.sampled_from([1, 1, 3]))]
    pads = [draw(st.sampled_from([0, 1, 2])), kernel[1] // 2, draw(st.sampled_from([0, 1])), kernel[1] // 2]
    dilations = [1, 1] if kind == "transposed" else [draw(st.sampled_from([1, 1, 2])), 1]
    if kind.startswith("as"):
        pads[1] = pads[3] = 0
    strides = [draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2]))]
    if kind == "transposed":
        strides = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    net.dynamic_batch = draw(st.booleans())
    x = net.input(draw(st.sampled_from([1, 2])), ic, draw(st.sampled_from([7, 13, 40])), width)
    if draw(st.booleans()):
        x = net.op("Conv", x, net.weight(ic, ic, 1, 1))
    filters = net.weight(ic, oc, *kernel) if kind == "transposed" else net.weight(oc, ic // groups, *kernel)
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups, "kernel_shape": kernel}
    y = net.op("ConvTranspose" if kind == "transposed" else "Conv", x, filters, net.weight(oc), **attributes)
    y = net.op("Relu", y)
    return net, net.op("Add", y, y) if draw(st.booleans()) else y


@examples(10)
@given(narrow(), targets)
def test_narrow_images(case: tuple[Net, str], target: Any) -> None:
    net, out = case
    net.check(out, target=target)


@few
@given(st.data(), targets)
def test_transposed_convolution_of_a_row(data: st.DataObject, target: Any) -> None:
    draw, net = data.draw, Net(data.draw(st.integers(0, 99)))
    kernel, stride = draw(st.sampled_from([(1, 1), (3, 1), (4, 2), (5, 3)]))
    ic, oc = draw(st.sampled_from([1, 8, 17])), draw(st.sampled_from([1, 16, 20]))
    pads, extra = [draw(st.integers(0, kernel // 2)) for _ in "be"], draw(st.integers(0, stride - 1))
    x = net.input(draw(st.integers(1, 2)), ic, draw(st.sampled_from([2, 9, 33])))
    attributes = {"strides": [stride], "pads": pads, "output_padding": [extra], "kernel_shape": [kernel]}
    net.check(net.op("Tanh", net.op("ConvTranspose", x, net.weight(ic, oc, kernel), **attributes)), target=target)


@few
@given(
    targets,
    st.sampled_from(["uint8", "int8"]),
    st.sampled_from([(3, 8, 1), (5, 7, 1), (6, 9, 3), (20, 20, 20)]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([(0, 0), (1, 1), (2, 0)]),
)
def test_integers(
    target: Any, dtype: str, channels: tuple[int, int, int], kernel: int, stride: int, dilation: int, pads: Any
) -> None:
    rng = np.random.default_rng(0)
    ic, oc, groups = channels
    x, w = extremes(rng, (2, ic, 23, 1), dtype), extremes(rng, (oc, ic // groups, kernel, 1), "int8")
    strides, dilations, widths = (stride, 1), (dilation, 1), (pads[0], 0, pads[1], 0)

    def steps(builder: relax.BlockBuilder, data: tvm.ir.Expr) -> tvm.ir.Expr:
        if any(pads):
            data = builder.emit(relax.op.nn.pad(data, [0, 0, 0, 0, *pads, 0, 0], "constant", 3))
        filters = relax.const(w, "int8")
        return relax.op.nn.conv2d(data, filters, strides, 0, dilations, groups=groups, out_dtype="int32")

    (got,) = compiled(module(x.shape, dtype, steps), target)(x)
    np.testing.assert_array_equal(got, convolved(x, w, widths, 3, strides, dilations, groups))


def test_columns_of_any_height() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[2, 0, 2, 0]),
        helper.make_node("Conv", ["a", "v"], ["b"], pads=[1, 0, 1, 0], group=24),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    sizes = [{"b": 1 + n % 2, "n": n} for n in (*range(1, 20), 33, 100)]
    check(TARGETS[-1], nodes, {"x": ["b", 8, "n", 1]}, sizes, w=weight(24, 8, 5, 1), v=weight(24, 1, 3, 1))


@pytest.mark.parametrize("groups", [1, 2, 64])
def test_a_column_has_the_tiles_of_a_row(groups: int) -> None:
    """As many sums stay in registers, and the sums run over as many steps."""

    def updates(height: int, width: int) -> list[int]:
        net, axis = Net(), 2 if height > 1 else 3
        kernel, pads = ((5, 1), [2, 0, 2, 0]) if axis == 2 else ((1, 5), [0, 2, 0, 2])
        filters = net.weight(64, 64 // groups, *kernel)
        y = net.op("Conv", net.input(1, 64, height, width), filters, pads=pads, group=groups)
        mod = from_onnx(net.model(y), keep_params_in_input=False)
        with HOST:
            mod = tvm.transform.Sequential([*fusing(HOST), schedule_pass(machine_of(HOST))])(mod)
        (found,) = (f for gv, f in mod.functions.items() if any(s in gv.name_hint for s in ("conv2d", "depthwise")))
        return sorted(
            sum(str(s.buffer.name).startswith("total") for s in inside(nest.body, tirx.BufferStore))
            for nest in inside(found.body, tirx.For)
        )

    assert updates(200, 1) == updates(1, 200)
    assert max(updates(1, 200)) > 8


def test_a_kernel_as_wide_as_the_image_reads_its_columns_as_channels() -> None:
    """The filters (h, w) over words and their embeddings, of networks for texts."""
    net = Net()
    y = net.op("Conv", net.input(1, 1, 30, 64), net.weight(20, 1, 3, 64))
    mod = channels_last(from_onnx(net.model(y), keep_params_in_input=False), machine_of(HOST))
    shapes = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, tvm.ir.GenericConst):
            shapes.append(expr.value.numpy().shape[:-1])

    relax.analysis.post_order_visit(relax.transform.DeadCodeElimination()(mod)["main"], visit)
    assert [s[-3:] for s in shapes] == [(1, 3, 64)]
