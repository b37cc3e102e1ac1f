"""Networks for measuring schedules: generated with random weights, and the OCR networks if they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A small builder of ONNX graphs."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def weight(self, *shape: int, scale: float | None = None) -> str:
        name = self.name()
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        value = self._rng.standard_normal(shape) * (scale if scale is not None else fan_in**-0.5)
        self.weights.append(numpy_helper.from_array(value.astype("float32"), name))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = self.name()
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def conv(self, x: str, ic: int, oc: int, kernel: int, stride: int = 1, groups: int = 1, rank: int = 2) -> str:
        weight = self.weight(oc, ic // groups, *[kernel] * rank)
        return self.op(
            "Conv",
            x,
            weight,
            self.weight(oc, scale=0.1),
            strides=[stride] * rank,
            pads=[kernel // 2] * (2 * rank),
            group=groups,
            kernel_shape=[kernel] * rank,
        )

    def model(self, shape: tuple[int, ...], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model


def three_convolutions() -> onnx.ModelProto:
    g, x = Graph(), "x"
    for ic, oc, stride in ((3, 32, 2), (32, 64, 2), (64, 64, 1)):
        x = g.op("Relu", g.conv(x, ic, oc, 3, stride))
    return g.model((1, 3, 224, 224), x)


def mobilenet() -> onnx.ModelProto:
    """A network like MobileNetV2: inverted residuals, expansion 6, ReLU6."""
    g = Graph()
    low, high = g.constant(np.float32(0.0)), g.constant(np.float32(6.0))

    def relu6(x: str) -> str:
        return g.op("Clip", x, low, high)

    x, channels = relu6(g.conv("x", 3, 32, 3, 2)), 32
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, oc, repeat, first_stride in blocks:
        for i in range(repeat):
            stride, wide, skip = (first_stride if i == 0 else 1), channels * expansion, x
            if expansion > 1:
                x = relu6(g.conv(x, channels, wide, 1))
            x = relu6(g.conv(x, wide, wide, 3, stride, groups=wide))
            x = g.conv(x, wide, oc, 1)
            x = g.op("Add", x, skip) if stride == 1 and channels == oc else x
            channels = oc
    x = g.op("Flatten", g.op("GlobalAveragePool", relu6(g.conv(x, channels, 1280, 1))))
    return g.model((1, 3, 224, 224), g.op("Gemm", x, g.weight(1280, 1000), g.weight(1000)))


def resnet() -> onnx.ModelProto:
    """A network like ResNet-18."""
    g = Graph()
    x = g.op("Relu", g.conv("x", 3, 64, 7, 2))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for oc, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first_stride, 1):
            skip = x if channels == oc else g.conv(x, channels, oc, 1, stride)
            y = g.op("Relu", g.conv(x, channels, oc, 3, stride))
            x = g.op("Relu", g.op("Add", g.conv(y, oc, oc, 3), skip))
            channels = oc
    x = g.op("Flatten", g.op("GlobalAveragePool", x))
    return g.model((1, 3, 224, 224), g.op("Gemm", x, g.weight(512, 1000), g.weight(1000)))


def transformer(length: int = 128, width: int = 384, heads: int = 6) -> onnx.ModelProto:
    """Two encoder blocks: self-attention and a feed-forward part with GELU, layer normalization before each."""
    g, x = Graph(), "x"
    split = g.constant(np.array([1, length, heads, width // heads], dtype="int64"))
    joined = g.constant(np.array([1, length, width], dtype="int64"))
    half, one, root = (g.constant(np.float32(v)) for v in (0.5, 1.0, 2.0**0.5))
    scale = g.constant(np.float32((width / heads) ** -0.5))

    def linear(x: str, ic: int, oc: int) -> str:
        return g.op("Add", g.op("MatMul", x, g.weight(ic, oc, scale=ic**-0.5)), g.weight(oc, scale=0.1))

    def norm(x: str) -> str:
        return g.op("LayerNormalization", x, g.weight(width, scale=1.0), g.weight(width, scale=0.1), axis=-1)

    for _ in range(2):
        y = norm(x)
        q, k, v = (g.op("Reshape", linear(y, width, width), split) for _ in range(3))
        q = g.op("Transpose", q, perm=[0, 2, 1, 3])
        k = g.op("Transpose", k, perm=[0, 2, 3, 1])
        v = g.op("Transpose", v, perm=[0, 2, 1, 3])
        scores = g.op("Softmax", g.op("Mul", g.op("MatMul", q, k), scale), axis=-1)
        y = g.op("Reshape", g.op("Transpose", g.op("MatMul", scores, v), perm=[0, 2, 1, 3]), joined)
        x = g.op("Add", x, linear(y, width, width))
        y = linear(norm(x), width, 4 * width)
        y = g.op("Mul", g.op("Mul", y, half), g.op("Add", g.op("Erf", g.op("Div", y, root)), one))
        x = g.op("Add", x, linear(y, 4 * width, width))
    return g.model((1, length, width), x)


def convolutions_1d() -> onnx.ModelProto:
    """A network for waveforms: strided convolutions and residual blocks without dilation."""
    g, x, channels = Graph(), "x", 1
    for oc, kernel, stride in ((32, 9, 4), (64, 5, 2), (128, 5, 2)):
        x = g.op("Relu", g.conv(x, channels, oc, kernel, stride, rank=1))
        channels = oc
    for _ in range(3):
        y = g.op("Relu", g.conv(x, channels, channels, 3, rank=1))
        x = g.op("Add", x, g.conv(y, channels, channels, 3, rank=1))
    return g.model((1, 1, 16000), g.op("Relu", x))


def decoder() -> onnx.ModelProto:
    """An upsampling decoder: transposed convolutions with overlap, resize, concatenation, grouped convolutions."""
    g = Graph()
    down = g.op("Relu", g.conv("x", 16, 64, 3, 2))
    deep = g.op("Relu", g.conv(down, 64, 128, 3, 2, groups=4))
    up = g.op("ConvTranspose", deep, g.weight(128, 64, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[4, 4])
    x = g.op("Concat", g.op("Relu", up), down, axis=1)
    x = g.op("Sigmoid", g.conv(x, 128, 32, 3))
    sizes = g.constant(np.array([1.0, 1.0, 2.0, 2.0], dtype="float32"))
    x = g.op("Resize", x, "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return g.model((1, 16, 96, 96), g.op("Tanh", g.conv(x, 32, 8, 3)))


@dataclass(frozen=True)
class Case:
    """A network and the shape of its input."""

    name: str
    model: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]


def _packaged(file: str) -> Callable[[], onnx.ModelProto]:
    def load() -> onnx.ModelProto:
        spec = importlib.util.find_spec("rapidocr_onnxruntime")
        if spec is None or spec.submodule_search_locations is None:
            raise FileNotFoundError("rapidocr-onnxruntime is not installed (it contains the networks)")
        return onnx.load(Path(spec.submodule_search_locations[0]) / "models" / file)

    return load


CASES = [
    Case("PP-OCRv4 det 320x320", _packaged("ch_PP-OCRv4_det_infer.onnx"), (1, 3, 320, 320)),
    Case("PP-OCRv4 det 640x640", _packaged("ch_PP-OCRv4_det_infer.onnx"), (1, 3, 640, 640)),
    Case("PP-OCR cls 48x192", _packaged("ch_ppocr_mobile_v2.0_cls_infer.onnx"), (1, 3, 48, 192)),
    Case("PP-OCRv4 rec 48x320", _packaged("ch_PP-OCRv4_rec_infer.onnx"), (1, 3, 48, 320)),
    Case("three convolutions 224x224", three_convolutions, (1, 3, 224, 224)),
    Case("MobileNetV2-like", mobilenet, (1, 3, 224, 224)),
    Case("ResNet-18-like", resnet, (1, 3, 224, 224)),
    Case("transformer encoder x2", transformer, (1, 128, 384)),
    Case("1-D convolutions", convolutions_1d, (1, 1, 16000)),
    Case("decoder", decoder, (1, 16, 96, 96)),
]
