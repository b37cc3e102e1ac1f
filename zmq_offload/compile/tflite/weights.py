"""Weights of bytes in operators on floats: TensorFlow's dynamic range quantization.

TFLite rounds the operator's other operand to bytes when the model runs. Here the weights become floats, and the
operator is computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tflite
from tvm.relax.frontend.tflite.tflite_frontend import TensorWrapper

_KINDS = {tflite.TensorType.INT8: "int8", tflite.TensorType.UINT8: "uint8"}


def with_float_weights(inputs: list[Any], outputs: list[Any]) -> list[Any]:
    """An operator's inputs, with floats in place of constant bytes if none of its other tensors are quantized."""
    quantized = [t for t in inputs if t.qnn_params is not None]
    others = [t for t in (*inputs, *outputs) if t.qnn_params is not None and not _is_constant(t)]
    if not quantized or others or not outputs:
        return inputs
    return [_as_floats(t) if t in quantized and t.tensor.Type() in _KINDS else t for t in inputs]


def _is_constant(tensor: Any) -> bool:
    return bool(tensor.buffer and tensor.buffer.DataLength())


def _as_floats(wrapped: Any) -> Any:
    tensor, meaning = wrapped.tensor, wrapped.tensor.Quantization()
    shape = [int(d) for d in tensor.ShapeAsNumpy()]
    values = wrapped.buffer.DataAsNumpy().view(_KINDS[tensor.Type()]).reshape(shape)
    scales, zeros = meaning.ScaleAsNumpy(), meaning.ZeroPointAsNumpy()
    along = [-1 if i == meaning.QuantizedDimension() else 1 for i in range(len(shape))] if scales.size > 1 else []
    real = (values.astype("i4") - zeros.astype("i4").reshape(along)) * scales.astype("f4").reshape(along)
    return TensorWrapper(wrapped.tensor_idx, _FloatTensor(tensor), _Floats(real.astype("f4")))


class _FloatTensor:
    """A tensor of the file, but of float32."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def Type(self) -> int:
        return int(tflite.TensorType.FLOAT32)


class _Floats:
    """A buffer of the file, with floats."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._bytes = np.ascontiguousarray(values).reshape(-1).view("u1")

    def DataLength(self) -> int:
        return len(self._bytes)

    def DataAsNumpy(self) -> np.ndarray[Any, Any]:
        return self._bytes
