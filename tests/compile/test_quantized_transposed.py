"""Transposed convolutions of bytes: right, and computed without the zeros between the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import tvm

from tests.compile.test_quantized import Array, assert_within_a_step, both, random
from tests.support import quantized_models as q
from zmq_offload.compile.build import prepared
from zmq_offload.compile.onnx.importer import import_uncut

CASES: tuple[tuple[tuple[int, ...], str | None, dict[str, Any]], ...] = (
    ((4, 6, 2, 2), "Relu", {"strides": [2, 2]}),
    ((4, 6, 3, 3), "Relu", {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    ((4, 6, 4, 4), None, {"strides": [2, 2], "pads": [1] * 4}),
    ((4, 6, 3, 2), None, {"strides": [1, 3], "pads": [1, 0, 0, 1]}),
    ((4, 2, 3, 3), "Relu", {"strides": [2, 2], "group": 2}),
    ((4, 6, 3, 3), "Sigmoid", {"strides": [2, 1], "dilations": [1, 2], "pads": [1] * 4}),
    ((4, 6, 1, 1), None, {"strides": [2, 2]}),
    ((4, 6, 5, 5), "LeakyRelu", {"strides": [3, 3], "pads": [3] * 4}),
)


def model() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Each case after the same image; weights per channel or not, signed or not; a last QuantizeLinear or not."""
    net = q.Net()
    outputs: dict[str, str] = {}
    net.quantized(0.03, 120)
    image = net.top
    for number, (shape, activation, attributes) in enumerate(CASES):
        net.top = image
        net.weights[f"b{number}"] = random(shape[1] * attributes.get("group", 1), seed=number)
        axis = 1 if number % 3 == 0 and "group" not in attributes else None
        weight = net.weight(f"w{number}", shape, axis, ("int8", "uint8")[number % 2])
        net.add("ConvTranspose", f"t{number}", weight, f"b{number}", **attributes)
        if activation is not None:
            net.add(activation, f"a{number}")
        if number == 3:
            outputs[net.top] = "float32"
        else:
            outputs[net.quantized(0.3, 110)] = "uint8"
    feeds = {"x": random(2, 4, 5, 6) * 2}
    return q.model(net.nodes, feeds, outputs, net.weights, opset=21), feeds


def test_transposed_convolutions_are_right(tmp_path: Path) -> None:
    written, feeds = model()
    ours, right = both(written, feeds, tmp_path)
    assert_within_a_step(ours, right, [o.name for o in written.graph.output])


def test_bytes_are_moved_and_no_zeros_between_the_inputs(tmp_path: Path) -> None:
    written, _ = model()
    mod = prepared(import_uncut(q.save(written, tmp_path / "m.onnx"), {}))
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    calls = [b.value for b in bindings if isinstance(b.value, tvm.ir.Call)]
    # Those with one channel sum the bytes, for zero points of weights that int8 does not hold without them.
    convolutions = [c for c in calls if c.op.name == "relax.nn.conv2d" and int(c.ty.shape.values[1]) > 1]
    assert len(convolutions) == len(CASES)
    # As many positions as the image has, and few at its edge.
    for call in convolutions:
        assert all(5 <= int(d) <= 9 for d in call.ty.shape.values[2:]), call.ty
    moved = [str(c.ty.dtype) for c in calls if c.op.name == "relax.permute_dims" and c.ty.ndim == 7]
    assert moved.count("uint8") == len(CASES) - 1  # one result stays float
