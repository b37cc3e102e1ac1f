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

    def tensor(
        self, name: str, shape: Sequence[int], kind: str = "float32", open_: Sequence[int] | None = None
    ) -> None:
        self._tensors[name] = (shape, kind, None, open_)

    def constant(self, name: str, value: Array) -> None:
        self._tensors[name] = (value.shape, str(value.dtype), value, None)

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
        tflite.TensorStart(b)
        tflite.TensorAddName(b, label)
        tflite.TensorAddShape(b, extents)
        if signature is not None:
            tflite.TensorAddShapeSignature(b, signature)
        tflite.TensorAddType(b, KINDS[kind])
        tflite.TensorAddBuffer(b, buffer)
        return int(tflite.TensorEnd(b))

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


def network(path: Path) -> Path:
    """image [1,8,8,3] -> conv [1,4,4,4] with its activation -> mean [1,4] -> scores [1,5] -> y, their softmax."""
    op, writer = tflite.BuiltinOperator, Writer()
    shapes = {"image": (1, 8, 8, 3), "conv": (1, 4, 4, 4), "mean": (1, 4), "scores": (1, 5), "y": (1, 5)}
    for name, shape in shapes.items():
        writer.tensor(name, shape, open_=(-1, 8, 8, 3) if name == "image" else None)
    for name, value in weights().items():
        writer.constant(name, value)
    writer.constant("axes", np.array([1, 2], "int32"))
    relu, same = tflite.ActivationFunctionType.RELU, tflite.Padding.SAME
    writer.operator(
        op.CONV_2D, ["image", "filter", "bias"], ["conv"], "Conv2DOptions",
        StrideW=2, StrideH=2, Padding=same, DilationWFactor=1, DilationHFactor=1, FusedActivationFunction=relu,
    )  # fmt: skip
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


def computed(image: Array) -> Array:
    """The network in NumPy. With SAME padding and a stride of 2, eight pixels get one more at their end."""
    w = weights()
    padded = np.pad(image.astype("f8"), ((0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
    conv = np.maximum(np.einsum("nhwcij,oijc->nhwo", windows, w["filter"]) + w["bias"], 0)
    scores = conv.mean((1, 2)) @ w["matrix"].T.astype("f8")
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
