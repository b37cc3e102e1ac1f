"""ONNX models of ONNX Runtime's LSTM with weights of 8 bits, and what they compute without rounding states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.recurrent_nets import RecurrentNet

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizedLstm:
    """An LSTM whose weights are quantized to `dtype`, with a scale for each column or each direction."""

    net: RecurrentNet
    dtype: str = "int8"
    per_column: bool = True
    zero: int = 0  # zero point of all weights

    def _quantized(self, weight: Array) -> tuple[Array, Array, Array]:
        """Weights (directions, depth, columns), scales and zero points as ONNX Runtime reads them."""
        values = weight.transpose(0, 2, 1)
        top = np.abs(values).max(axis=1 if self.per_column else (1, 2))
        scales = (top / 100).astype("float32")
        each = scales[:, None, :] if self.per_column else scales[:, None, None]
        rounded = np.round(values / each) + self.zero
        limits = np.iinfo(self.dtype)
        quantized = np.clip(rounded, limits.min, limits.max).astype(self.dtype)
        return quantized, scales, np.full(scales.shape, self.zero, self.dtype)

    def model(self) -> onnx.ModelProto:
        arrays = self.net.arrays()
        for name in ("w", "r"):
            arrays[name], arrays[f"{name}_scale"], arrays[f"{name}_zero"] = self._quantized(arrays[name])
        order = (
            "x",
            "w",
            "r",
            "bias",
            "lengths",
            "initial_h",
            "initial_c",
            "",
            "w_scale",
            "w_zero",
            "r_scale",
            "r_zero",
        )
        node = helper.make_node(
            "DynamicQuantizeLSTM",
            [n if n in arrays else "" for n in order],
            self.net.outputs,
            name="rec",
            domain="com.microsoft",
            hidden_size=self.net.hidden,
            direction=self.net.direction,
        )
        x = arrays.pop("x")
        graph = helper.make_graph(
            [node],
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in self.net.outputs],
            [numpy_helper.from_array(a, n) for n, a in arrays.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def expected(self) -> list[Array]:
        """The results in float64 with the real values of the quantized weights."""
        arrays = self.net.arrays()
        for name in ("w", "r"):
            values, scales, _ = self._quantized(arrays[name])
            each = scales[:, None, :] if self.per_column else scales[:, None, None]
            arrays[name] = ((values.astype("float64") - self.zero) * each).transpose(0, 2, 1)
        return self.net.expected(arrays)
