"""The profile names every function, adds up, counts operations as one would by hand, and draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from schedule_harness import HOST, Net
from tvm.relax.frontend.onnx import from_onnx

from zmq_offload.compile.profile import FunctionTime, Profile, draw, profile, table


def test_a_profile_of_a_small_network(tmp_path: Path) -> None:
    net = Net()
    y = net.op("Conv", net.input(1, 8, 34, 34), net.weight(16, 8, 3, 3), kernel_shape=[3, 3])
    model = net.model(net.op("Softmax", net.op("Relu", y), axis=1))
    mod = from_onnx(model, keep_params_in_input=False)
    result = profile(mod, HOST, list(net.inputs.values()), repeat=3, onnx_model=model.SerializeToString())
    assert sum(f.share for f in result.functions) <= 1.0 + 1e-9
    assert [f.milliseconds for f in result.functions] == sorted(
        (f.milliseconds for f in result.functions), reverse=True
    )
    convolution = next(f for f in result.functions if "conv2d" in f.name)
    assert convolution.operations == pytest.approx(2 * 32 * 32 * 16 * 8 * 9, rel=0.02)  # and the ReLU
    assert result.milliseconds > 0 and result.peak_gflops > 0.1
    assert result.onnxruntime_ms is not None and result.onnxruntime_ms > 0
    text = table(result)
    assert all(f.name in text for f in result.functions) and "ONNX Runtime" in text
    draw(result, tmp_path / "profile.png")
    with Image.open(tmp_path / "profile.png") as image:
        assert image.format == "PNG" and image.size[0] > 500


def test_long_profiles_are_summed_up() -> None:
    functions = tuple(FunctionTime(f"f{i}", 1, 1.0, 0.02, None) for i in range(50))
    text = table(Profile(functions, 50.0, 100.0), most=10)
    assert "40 others" in text and "f9" in text and "f10" not in text
