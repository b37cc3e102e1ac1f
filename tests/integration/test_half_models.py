"""A model of float16, split at a tensor of float16, and served by a broker and a worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import zmq_offload
from zmq_offload.compile import compile_model
from zmq_offload.testing import Fabric


def test_a_float16_model_is_split_and_served(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype("f2") for shape in ((16, 3, 3, 3), (10, 16)))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(first, "w"), numpy_helper.from_array(second, "v")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    compiled = compile_model(
        path, inputs={"x": ("N", 3, 8, 8)}, cut="features", name="net", output=tmp_path / "dist", check=True
    )
    assert [str(spec) for spec in compiled.models[0].inputs] == ["features FP16[?,16,8,8]"]
    with (
        Fabric(tmp_path / "dist" / "repository") as fabric,
        zmq_offload.load(compiled.device, fabric.frontend) as model,
    ):
        for batch in (1, 3):
            x = rng.standard_normal((batch, 3, 8, 8)).astype("f2")
            got = model(x)
            padded = np.pad(x.astype("f8"), ((0, 0), (0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
            features = np.maximum(np.einsum("nchwyx,ocyx->nohw", windows, first.astype("f8")), 0)
            right = features.mean(axis=(2, 3)) @ second.astype("f8").T
            assert got.dtype == np.float16
            np.testing.assert_allclose(got, right, rtol=2e-3, atol=2e-3 * np.abs(right).max())
