"""Small TFLite files, written with the package tflite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import tflite

from tests.support import onnx_models

KINDS = {
    "float16": tflite.TensorType.FLOAT16,
    "float32": tflite.TensorType.FLOAT32,
    "int32": tflite.TensorType.INT32,
    "int8": tflite.TensorType.INT8,
}

Array = np.ndarray[Any, Any]


class Writer:
    """Collects tensors and operators of one graph."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(1024)
        self._tensors: dict[str, tuple[Sequence[int], str, Array | None, Sequence[int] | None]] = {}
        self._operators: list[tuple[int, Sequence[str], Sequence[str], int, int]] = []
        self._scales: dict[str, tuple[Sequence[float], Sequence[int], int]] = {}

    def tensor(
        self, name: str, shape: Sequence[int], kind: str = "float32", open_: Sequence[int] | None = None
    ) -> None:
        self._tensors[name] = (shape, kind, None, open_)

    def constant(self, name: str, value: Array) -> None:
        self._tensors[name] = (value.shape, str(value.dtype), value, None)

    def quantized(self, name: str, scales: Sequence[float], zeros: Sequence[int], axis: int = 0) -> None:
        """Give a tensor one scale and zero point, or one for each index of an axis."""
        self._scales[name] = scales, zeros, axis

    def operator(self, code: int, inputs: Sequence[str], outputs: Sequence[str], kind: str = "", **fields: int) -> None:
        """Add an operator with options of the class `kind`."""
        options = 0
        if kind:
            module = getattr(tflite, kind)
            getattr(module, f"{kind}Start", None)
            start, end = getattr(tflite, f"{kind}Start"), getattr(tflite, f"{kind}End")
            start(self._builder)
            for field, value in fields.items():
                getattr(tflite, f"{kind}Add{field}")(self._builder, value)
            options = end(self._builder)
        self._operators.append((code, inputs, outputs, getattr(tflite.BuiltinOptions, kind or "NONE"), options))

    def write(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Path:
        b, names = self._builder, list(self._tensors)
        buffers = [self._buffer(None), *(self._buffer(value) for _, _, value, _ in self._tensors.values())]
        tensors = [self._tensor(name, at + 1) for at, name in enumerate(names)]
        codes = sorted({code for code, *_ in self._operators})
        operators = []
        for code, used, made, kind, options in self._operators:
            ins, outs = (b.CreateNumpyVector(np.array([names.index(n) for n in ns], "i4")) for ns in (used, made))
            tflite.OperatorStart(b)
            tflite.OperatorAddOpcodeIndex(b, codes.index(code))
            tflite.OperatorAddInputs(b, ins)
            tflite.OperatorAddOutputs(b, outs)
            if kind:
                tflite.OperatorAddBuiltinOptionsType(b, kind)
                tflite.OperatorAddBuiltinOptions(b, options)
            operators.append(tflite.OperatorEnd(b))
        ins, outs = (b.CreateNumpyVector(np.array([names.index(n) for n in ns], "i4")) for ns in (inputs, outputs))
        listed, steps = self._vector(tensors), self._vector(operators)
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, listed)
        tflite.SubGraphAddInputs(b, ins)
        tflite.SubGraphAddOutputs(b, outs)
        tflite.SubGraphAddOperators(b, steps)
        graph = self._vector([tflite.SubGraphEnd(b)])
        known = []
        for code in codes:
            tflite.OperatorCodeStart(b)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
            tflite.OperatorCodeAddBuiltinCode(b, code)
            tflite.OperatorCodeAddVersion(b, 1)
            known.append(tflite.OperatorCodeEnd(b))
        opcodes, content = self._vector(known), self._vector(buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, opcodes)
        tflite.ModelAddSubgraphs(b, graph)
        tflite.ModelAddBuffers(b, content)
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        path.write_bytes(b.Output())
        return path

    def _buffer(self, value: Array | None) -> int:
        data = None if value is None else self._builder.CreateByteVector(value.tobytes())
        tflite.BufferStart(self._builder)
        if data is not None:
            tflite.BufferAddData(self._builder, data)
        return int(tflite.BufferEnd(self._builder))

    def _tensor(self, name: str, buffer: int) -> int:
        b, (shape, kind, _, open_) = self._builder, self._tensors[name]
        label, extents = b.CreateString(name), b.CreateNumpyVector(np.array(shape, "i4"))
        signature = None if open_ is None else b.CreateNumpyVector(np.array(open_, "i4"))
        meaning = self._quantization(*self._scales[name]) if name in self._scales else None
        tflite.TensorStart(b)
        if meaning is not None:
            tflite.TensorAddQuantization(b, meaning)
        tflite.TensorAddName(b, label)
        tflite.TensorAddShape(b, extents)
        if signature is not None:
            tflite.TensorAddShapeSignature(b, signature)
        tflite.TensorAddType(b, KINDS[kind])
        tflite.TensorAddBuffer(b, buffer)
        return int(tflite.TensorEnd(b))

    def _quantization(self, scales: Sequence[float], zeros: Sequence[int], axis: int) -> int:
        b = self._builder
        factors, offsets = b.CreateNumpyVector(np.array(scales, "f4")), b.CreateNumpyVector(np.array(zeros, "i8"))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, factors)
        tflite.QuantizationParametersAddZeroPoint(b, offsets)
        tflite.QuantizationParametersAddQuantizedDimension(b, axis)
        return int(tflite.QuantizationParametersEnd(b))

    def _vector(self, offsets: Sequence[int]) -> int:
        b = self._builder
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return int(b.EndVector())


def weights() -> Mapping[str, Array]:
    return {
        "filter": onnx_models.random(4, 3, 3, 3, seed=1),
        "bias": onnx_models.random(4, seed=2),
        "matrix": onnx_models.random(5, 4, seed=3),
    }


def first_convolution(writer: Writer) -> None:
    """image, filter, bias -> conv: strides of 2, and an activation."""
    writer.operator(
        tflite.BuiltinOperator.CONV_2D, ["image", "filter", "bias"], ["conv"], "Conv2DOptions",
        StrideW=2, StrideH=2, Padding=tflite.Padding.SAME, DilationWFactor=1, DilationHFactor=1,
        FusedActivationFunction=tflite.ActivationFunctionType.RELU,
    )  # fmt: skip


def network(path: Path) -> Path:
    """image [1,8,8,3] -> conv [1,4,4,4] with its activation -> mean [1,4] -> scores [1,5] -> y, their softmax."""
    op, writer = tflite.BuiltinOperator, Writer()
    shapes = {"image": (1, 8, 8, 3), "conv": (1, 4, 4, 4), "mean": (1, 4), "scores": (1, 5), "y": (1, 5)}
    for name, shape in shapes.items():
        writer.tensor(name, shape, open_=(-1, 8, 8, 3) if name == "image" else None)
    for name, value in weights().items():
        writer.constant(name, value)
    writer.constant("axes", np.array([1, 2], "int32"))
    first_convolution(writer)
    writer.operator(op.MEAN, ["conv", "axes"], ["mean"], "ReducerOptions")
    writer.operator(op.FULLY_CONNECTED, ["mean", "matrix"], ["scores"], "FullyConnectedOptions")
    writer.operator(op.SOFTMAX, ["scores"], ["y"], "SoftmaxOptions", Beta=1)
    return writer.write(path, ["image"], ["y"])


def channels(path: Path) -> Path:
    """image [1,9,8,4] -> depthwise convolution, with weights of half precision -> slopes -> transposed convolution."""
    op, writer = tflite.BuiltinOperator, Writer()
    shapes = {"image": (1, 9, 8, 4), "filter": (1, 3, 3, 4), "deep": (1, 5, 4, 4), "sloped": (1, 5, 4, 4)}
    for name, shape in {**shapes, "y": (1, 10, 8, 6)}.items():
        writer.tensor(name, shape)
    writer.constant("half", onnx_models.random(1, 3, 3, 4, seed=1).astype("f2"))
    writer.constant("bias", onnx_models.random(4, seed=2))
    writer.constant("slopes", onnx_models.random(1, 1, 4, seed=3))
    writer.constant("size", np.array([1, 10, 8, 6], "i4"))
    writer.constant("up", onnx_models.random(6, 2, 2, 4, seed=4))
    writer.operator(op.DEQUANTIZE, ["half"], ["filter"], "DequantizeOptions")
    writer.operator(
        op.DEPTHWISE_CONV_2D, ["image", "filter", "bias"], ["deep"], "DepthwiseConv2DOptions",
        StrideW=2, StrideH=2, Padding=tflite.Padding.SAME, DepthMultiplier=1, DilationWFactor=1, DilationHFactor=1,
    )  # fmt: skip
    writer.operator(op.PRELU, ["deep", "slopes"], ["sloped"])
    writer.operator(
        op.TRANSPOSE_CONV, ["size", "up", "sloped"], ["y"], "TransposeConvOptions",
        StrideW=2, StrideH=2, Padding=tflite.Padding.VALID,
    )  # fmt: skip
    return writer.write(path, ["image"], ["y"])


def channels_computed(image: Array) -> Array:
    """The network of `channels` in NumPy. SAME padding puts one row before and after nine, one column after eight."""
    half = onnx_models.random(1, 3, 3, 4, seed=1).astype("f2").astype("f8")[0]
    padded = np.pad(image.astype("f8"), ((0, 0), (1, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    deep = np.einsum("nhwcij,ijc->nhwc", windows, half) + onnx_models.random(4, seed=2)
    sloped = np.where(deep < 0, deep * onnx_models.random(1, 1, 4, seed=3), deep)
    # Strides as long as the filter: no two pixels meet in the output.
    up = np.einsum("nhwc,oijc->nhiwjo", sloped, onnx_models.random(6, 2, 2, 4, seed=4))
    return np.asarray(up.reshape(1, 10, 8, 6))


def computed(image: Array) -> Array:
    """The network in NumPy. With SAME padding and a stride of 2, eight pixels get one more at their end."""
    w = weights()
    padded = np.pad(image.astype("f8"), ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    conv = np.maximum(np.einsum("nhwcij,oijc->nhwo", windows, w["filter"]) + w["bias"], 0)
    scores = conv.mean((1, 2)) @ w["matrix"].T.astype("f8")
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def full_integer(path: Path) -> Path:
    """An int8 network as TensorFlow's converter writes it: image [1,8,8,3] of bytes to y [1,5], scores of bytes.

    A convolution with scales for each channel, a depthwise one, a residual addition, pools and a product.
    """
    op, writer = tflite.BuiltinOperator, Writer()
    generator, relu, none = np.random.default_rng(0), tflite.ActivationFunctionType.RELU6, 0
    tensors: dict[str, tuple[tuple[int, ...], float, int]] = {
        "image": ((1, 8, 8, 3), 0.02, -3),
        "conv": ((1, 4, 4, 8), 6 / 255, -128),
        "deep": ((1, 4, 4, 8), 0.05, 7),
        "sum": ((1, 4, 4, 8), 0.07, -20),
        "pool": ((1, 2, 2, 8), 0.07, -20),
        "mean": ((1, 8), 0.06, -30),
        "scores": ((1, 5), 0.1, 11),
        "y": ((1, 5), 1 / 256, -128),
    }
    for name, (shape, scale, zero) in tensors.items():
        writer.tensor(name, shape, "int8")
        writer.quantized(name, [scale], [zero])
    for name, shape, axis, source in (
        ("filter", (8, 3, 3, 3), 0, "image"),
        ("one", (1, 3, 3, 8), 3, "conv"),
        ("matrix", (5, 8), None, "mean"),
    ):
        channels_ = 1 if axis is None else shape[axis]
        scales = (generator.random(channels_) * 0.004 + 0.002).tolist()
        writer.constant(name, generator.integers(-127, 128, shape).astype("i1"))
        writer.quantized(name, scales, [0] * channels_, axis or 0)
        biases = shape[0] if axis is None else shape[axis]
        writer.constant(f"{name}.bias", generator.integers(-2000, 2000, biases).astype("i4"))
        writer.quantized(f"{name}.bias", [s * tensors[source][1] for s in scales], [0] * channels_)
    writer.constant("axes", np.array([1, 2], "int32"))
    same, window = tflite.Padding.SAME, {"StrideW": 2, "StrideH": 2}
    writer.operator(
        op.CONV_2D, ["image", "filter", "filter.bias"], ["conv"], "Conv2DOptions", **window,
        Padding=same, DilationWFactor=1, DilationHFactor=1, FusedActivationFunction=relu,
    )  # fmt: skip
    writer.operator(
        op.DEPTHWISE_CONV_2D, ["conv", "one", "one.bias"], ["deep"], "DepthwiseConv2DOptions", StrideW=1, StrideH=1,
        Padding=same, DepthMultiplier=1, DilationWFactor=1, DilationHFactor=1, FusedActivationFunction=none,
    )  # fmt: skip
    writer.operator(op.ADD, ["conv", "deep"], ["sum"], "AddOptions", FusedActivationFunction=none)
    writer.operator(
        op.MAX_POOL_2D, ["sum"], ["pool"], "Pool2DOptions", **window,
        FilterWidth=2, FilterHeight=2, Padding=same, FusedActivationFunction=none,
    )  # fmt: skip
    writer.operator(op.MEAN, ["pool", "axes"], ["mean"], "ReducerOptions")
    writer.operator(op.FULLY_CONNECTED, ["mean", "matrix", "matrix.bias"], ["scores"], "FullyConnectedOptions")
    writer.operator(op.SOFTMAX, ["scores"], ["y"], "SoftmaxOptions", Beta=1)
    return writer.write(path, ["image"], ["y"])


def dynamic_range(path: Path) -> Path:
    """A float network with int8 weights, as TensorFlow's converter writes it for `Optimize.DEFAULT` without samples:
    image [1,8,8,3] -> conv [1,4,4,4] -> deep [1,4,4,4] -> mean [1,4] -> y [1,5]."""
    op, writer, generator = tflite.BuiltinOperator, Writer(), np.random.default_rng(0)
    for name, shape in (("image", (1, 8, 8, 3)), ("conv", (1, 4, 4, 4)), ("deep", (1, 4, 4, 4))):
        writer.tensor(name, shape)
    writer.tensor("mean", (1, 4))
    writer.tensor("y", (1, 5))
    for name, shape, axis in (("filter", (4, 3, 3, 3), 0), ("one", (1, 3, 3, 4), 3), ("matrix", (5, 4), None)):
        count = 1 if axis is None else shape[axis]
        writer.constant(name, generator.integers(-127, 128, shape).astype("i1"))
        writer.quantized(name, (generator.random(count) * 0.004 + 0.002).tolist(), [0] * count, axis or 0)
    writer.constant("bias", onnx_models.random(4, seed=2))
    writer.constant("axes", np.array([1, 2], "int32"))
    same = tflite.Padding.SAME
    first_convolution(writer)
    writer.operator(
        op.DEPTHWISE_CONV_2D, ["conv", "one", "bias"], ["deep"], "DepthwiseConv2DOptions", StrideW=1, StrideH=1,
        Padding=same, DepthMultiplier=1, DilationWFactor=1, DilationHFactor=1,
    )  # fmt: skip
    writer.operator(op.MEAN, ["deep", "axes"], ["mean"], "ReducerOptions")
    writer.operator(op.FULLY_CONNECTED, ["mean", "matrix"], ["y"], "FullyConnectedOptions")
    return writer.write(path, ["image"], ["y"])
