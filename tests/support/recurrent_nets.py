"""ONNX models of one recurrent operator, and the same computed in float64 by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support import onnx_models

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class RecurrentNet:
    """An operator with random weights; `optional` names the optional inputs that it has."""

    kind: str
    time: int = 5
    batch: int = 2
    features: int = 3
    hidden: int = 8
    direction: str = "forward"
    optional: Sequence[str] = ()  # of bias, lengths, initial_h, initial_c
    constant: bool = True  # the weights are constants of the model, not inputs
    dtype: str = "float32"
    seed: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def outputs(self) -> list[str]:
        return ["y", "last_h", "last_c"][: 3 if self.kind == "LSTM" else 2]

    def arrays(self) -> dict[str, Array]:
        """All operands by name, the weights in ONNX's layout."""
        rng, d, rows = np.random.default_rng(self.seed), self.directions, GATES[self.kind] * self.hidden
        near = 1 / np.sqrt(self.hidden)

        def weight(*shape: int) -> Array:
            return rng.uniform(-near, near, shape).astype(self.dtype)

        found = {
            "x": rng.standard_normal((self.time, self.batch, self.features)).astype(self.dtype),
            "w": weight(d, rows, self.features),
            "r": weight(d, rows, self.hidden),
            "bias": weight(d, 2 * rows),
            "lengths": rng.integers(0, self.time + 1, self.batch).astype("int32"),
            "initial_h": rng.standard_normal((d, self.batch, self.hidden)).astype(self.dtype),
            "initial_c": rng.standard_normal((d, self.batch, self.hidden)).astype(self.dtype),
        }
        return {n: a for n, a in found.items() if n in ("x", "w", "r") or n in self.optional}

    def fed(self) -> dict[str, Array]:
        """The operands that are inputs of the model."""
        return {n: a for n, a in self.arrays().items() if n == "x" or not self.constant}

    def model(self, symbolic: bool = False) -> onnx.ModelProto:
        arrays, fed = self.arrays(), self.fed()
        names = [n if n in arrays else "" for n in ("x", "w", "r", "bias", "lengths", "initial_h", "initial_c")]
        names = names[: 7 if self.kind == "LSTM" else 6]
        attributes = {"hidden_size": self.hidden, "direction": self.direction, **self.attributes}
        node = helper.make_node(self.kind, names, self.outputs, name="rec", **attributes)
        inputs = [
            helper.make_tensor_value_info(
                n,
                helper.np_dtype_to_tensor_dtype(a.dtype),
                ["time", "batch", self.features] if symbolic and n == "x" else list(a.shape),
            )
            for n, a in fed.items()
        ]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        outputs = [helper.make_tensor_value_info(n, kind, None) for n in self.outputs]
        weights = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n not in fed]
        graph = helper.make_graph([node], "net", inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def expected(self, operands: Mapping[str, Array] | None = None) -> list[Array]:
        """The results in float64, as ONNX defines them with its usual activations; of other operands than its own."""
        a = {n: v.astype("float64") for n, v in (operands or self.arrays()).items()}
        results = [self._direction(a, d) for d in range(self.directions)]
        y = np.stack([r[0] for r in results], axis=1)
        return [y, *(np.stack([r[i] for r in results]) for i in range(1, len(self.outputs)))]

    def _direction(self, a: Mapping[str, Array], d: int) -> list[Array]:
        rows = GATES[self.kind] * self.hidden
        w, r = a["w"][d], a["r"][d]
        wb, rb = np.split(a["bias"][d], 2) if "bias" in a else (np.zeros(rows), np.zeros(rows))
        zero = np.zeros((self.batch, self.hidden))
        h = a["initial_h"][d] if "initial_h" in a else zero
        c = a["initial_c"][d] if "initial_c" in a else zero
        y = np.zeros((self.time, self.batch, self.hidden))
        lengths = a["lengths"] if "lengths" in a else np.full(self.batch, self.time)
        backwards = d == 1 or self.direction == "reverse"
        for t in reversed(range(self.time)) if backwards else range(self.time):
            new_h, new_c = self._step(a["x"][t] @ w.T + wb, h, c, r, rb)
            inside = (t < lengths)[:, None]
            h, c = np.where(inside, new_h, h), np.where(inside, new_c, c)
            y[t] = np.where(inside, new_h, 0)
        there = (lengths > 0)[:, None]
        return [y, np.where(there, h, 0), np.where(there, c, 0)]

    def _step(self, x: Array, h: Array, c: Array, r: Array, rb: Array) -> tuple[Array, Array]:
        sigmoid: Callable[[Array], Array] = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
        if self.kind == "RNN":
            return np.tanh(x + h @ r.T + rb), c
        if self.kind == "LSTM":
            i, o, f, g = np.split(x + h @ r.T + rb, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            return sigmoid(o) * np.tanh(c), c
        (xz, xr, xh), (rz, rr, rh), (bz, br, bh) = np.split(x, 3, axis=1), np.split(r, 3), np.split(rb, 3)
        z, reset = sigmoid(xz + h @ rz.T + bz), sigmoid(xr + h @ rr.T + br)
        if self.attributes.get("linear_before_reset"):
            n = np.tanh(xh + reset * (h @ rh.T + bh))
        else:
            n = np.tanh(xh + (reset * h) @ rh.T + bh)
        return (1 - z) * n + z * h, c


def tagger(path: Path) -> tuple[Path, str]:
    """x (7, 1, 8) -> MatMul, Relu: features -> bidirectional LSTM: joined -> GRU -> y. Returns the file and a cut."""
    lstm, gru = RecurrentNet("LSTM", 7, 1, 12, 16, "bidirectional"), RecurrentNet("GRU", 7, 1, 32, 16, seed=1)
    weights = {f"{n}{i}": a for i, net in ((1, lstm), (2, gru)) for n, a in net.arrays().items() if n != "x"}
    weights |= {"w0": onnx_models.random(8, 12, seed=5), "shape": np.array([0, 0, -1])}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["product"]),
        helper.make_node("Relu", ["product"], ["features"]),
        helper.make_node("LSTM", ["features", "w1", "r1"], ["both", "", ""], hidden_size=16, direction="bidirectional"),
        helper.make_node("Transpose", ["both"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "shape"], ["joined"]),
        helper.make_node("GRU", ["joined", "w2", "r2"], ["all", "y"], hidden_size=16),
    ]
    return onnx_models.write(path, nodes, {"x": [7, 1, 8]}, {"y": [1, 1, 16]}, weights), "features"
