"""Convolutions of bytes over images of any size: right at every size, and by the kernels of fixed sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from tests.compile.test_quantized import assert_within_a_step, random
from tests.support import quantized_models as q
from zmq_offload.compile import UncutModel, compile_uncut

TARGETS = (None, {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})
CASES: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("Conv", (12, 1, 3, 3), {"group": 12, "pads": [1] * 4}),
    ("Conv", (12, 1, 2, 5), {"group": 12, "strides": [2, 3], "pads": [0, 2, 1, 1]}),
    ("Conv", (12, 1, 3, 3), {"group": 12, "dilations": [2, 2], "pads": [2] * 4}),
    ("Conv", (12, 1, 3, 1), {"group": 12}),
    ("Conv", (20, 3, 3, 3), {"group": 4, "pads": [1] * 4}),
    ("Conv", (24, 1, 3, 3), {"group": 12, "strides": [2, 2], "pads": [1] * 4}),
)


def symbolic(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the batch, height and width of `x` as symbols."""
    shape = model.graph.input[0].type.tensor_type.shape
    for dim, name in zip(shape.dim, ("N", "", "H", "W"), strict=True):
        if name:
            dim.dim_param = name
    return model


def check(
    model: onnx.ModelProto, folder: Path, target: Any, dims: tuple[int | str, ...], sizes: list[tuple[int, ...]]
) -> None:
    file = q.save(symbolic(model), folder / "m.onnx")
    compile_uncut(file, folder / "m.so", target=target, inputs={"x": dims})
    ours = UncutModel(folder / "m.so")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    for batch, height, width in sizes:
        x = random(batch, 12, height, width) * 2
        assert_within_a_step(ours(x), session.run(None, {"x": x}), names)


def check_case(case: tuple[str, tuple[int, ...], dict[str, Any]], folder: Path, target: Any) -> None:
    operator, shape, attributes = case
    net = q.Net()
    net.quantized(0.03, 120)
    net.add(operator, "c", net.weight("w", shape, 0), **attributes)
    net.add("Relu", "r")
    model = q.model(net.nodes, {"x": random(1, 12, 8, 8)}, {net.quantized(0.1, 3): "uint8"}, net.weights)
    sizes = [(1, h, w) for h in (5, 9, 21) for w in (5, 8, 11)] + [(2, 35, 29)]
    check(model, folder, target, ("N", 12, "H", "W"), sizes)
    kind = "depthwise" if shape[:2] == (attributes["group"], 1) else "conv2d"
    names = set(re.findall(rb"fused_integer_(depthwise|conv2d)\d*_\w+", (folder / "m.so").read_bytes()))
    assert names == {kind.encode()}


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=["channels", "groups"])
def test_groups_of_channels_have_kernels(case: Any, tmp_path: Path) -> None:
    check_case(case, tmp_path, None)


@pytest.mark.operators
@pytest.mark.parametrize("target", TARGETS, ids=["widest", "AVX2"])
@pytest.mark.parametrize("case", CASES)
def test_all_groups_of_channels_have_kernels(case: Any, target: Any, tmp_path: Path) -> None:
    check_case(case, tmp_path, target)


def test_transposed_convolutions_after_strides(tmp_path: Path) -> None:
    """The height is a quotient rounded down there, and what is cut off the result depends on it."""
    net = q.Net()
    net.quantized(0.03, 120)
    net.add("Conv", "c", net.weight("w", (8, 12, 2, 2), 0), strides=[3, 3], pads=[1, 0, 1, 0])
    net.quantized(0.1, 110)
    net.add("ConvTranspose", "t", net.weight("v", (8, 6, 3, 1), 1), strides=[3, 2], pads=[2, 0, 1, 0])
    model = q.model(net.nodes, {"x": random(1, 12, 8, 8)}, {net.quantized(0.3, 110): "uint8"}, net.weights, opset=21)
    check(model, tmp_path, None, (1, 12, "H", 8), [(1, height, 8) for height in (5, 6, 13)])
