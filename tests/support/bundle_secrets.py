"""Search a device bundle for the weights of an offloaded region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from zmq_offload.compile import Compiled
from zmq_offload.compile.onnx.importer import read_onnx, simplify

Array = np.ndarray[Any, Any]


def contents(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def weights_of(model: onnx.ModelProto, offloaded: set[str]) -> tuple[list[Array], list[Array]]:
    """The weights of the offloaded nodes (given by output name) and of the others, without those that both use."""
    values: dict[str, Array] = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    _fold_scales(model, values)
    # A weight of few values (0, 1, epsilon) may be in any library.
    distinctive = {n for n, v in values.items() if v.dtype == np.float32 and len(np.unique(v)) >= 4}
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for node in model.graph.node:
        used[node.output[0] in offloaded].update(node.input)
    hidden, own = distinctive & used[True] - used[False], distinctive & used[False] - used[True]
    return [values[n] for n in sorted(hidden)], [values[n] for n in sorted(own)]


def _fold_scales(model: onnx.ModelProto, values: dict[str, Array]) -> None:
    """Scale the weights of convolutions and products by the factors after them, as the compiler does."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    scaled: dict[str, str] = {}  # by tensor, the weight that it is computed by
    for node in model.graph.node:
        constants = [name for name in node.input if name in values]
        if node.op_type in ("Conv", "MatMul") and node.input[1] in values:
            scaled[node.output[0]] = node.input[1]
            continue
        weight = next((scaled[name] for name in node.input if name in scaled and readers[name] == 1), None)
        if weight is None or not constants:
            continue
        if node.op_type == "BatchNormalization":
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            gamma, variance = (values[node.input[i]].astype("f8") for i in (1, 4))
            factor = (gamma / np.sqrt(variance + epsilon)).astype("f4")
        elif node.op_type in ("Add", "Mul"):
            factor = values[constants[0]] if node.op_type == "Mul" else np.ones(1, "f4")
        else:
            continue
        shape = (-1, *[1] * (values[weight].ndim - 1)) if values[weight].ndim > 2 else (-1,)
        values[weight] = values[weight] * factor.reshape(shape)
        scaled[node.output[0]] = weight


def four_byte_values(content: bytes) -> Array:
    """Each value that four adjacent bytes of `content` have, sorted."""
    shifted = [content[at : at + (len(content) - at) // 4 * 4] for at in range(4)]
    return np.sort(np.concatenate([np.frombuffer(part, "u4") for part in shifted]))  # np.unique is slower


def share_found(weight: Array, content: Array) -> float:
    """The fraction (0 to 1) of a weight's values that are among the `four_byte_values` of a file. Kernels get weights
    packed, transposed and tiled, but the values stay."""
    values = np.unique(np.ascontiguousarray(weight).view("u4"))
    values = values[values & 0xFFFF != 0]  # round values such as 0.5 are everywhere
    at = np.minimum(np.searchsorted(content, values), len(content) - 1)
    return float((content[at] == values).mean()) if len(values) else 0.0


def nodes_after(model: onnx.ModelProto, cut: str) -> set[str]:
    reached = {cut}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached - {cut}


def assert_sealed(path: Path, compiled: Compiled, cut: str, first: str | None = None) -> None:
    """Assert that no weight of the nodes after `cut` is in the device bundle: not as a whole, not its first or last
    bytes, not its values in any order. Of several cuts `cut` is the deepest, and `first` the one before the others."""
    device = contents(compiled.device)
    on_device, on_worker = four_byte_values(device), four_byte_values(contents(compiled.subgraphs[0]))
    model = simplify(read_onnx(path))
    hidden, own = weights_of(model, nodes_after(model, cut))
    assert hidden and own
    for weight in hidden:
        for form in (weight.tobytes(), weight.T.tobytes()):
            for piece in (form, form[:16], form[-16:]):
                # Few values, such as (0, -1), are in any library: shapes have them.
                assert len(set(piece)) < 8 or piece not in device
        # One or two values may be among megabytes of others by chance.
        assert weight.size < 16 or share_found(weight, on_device) < 0.25
    # The search does find what is there: most of each side's own weights. (Vectors are added up with others.)
    hidden, own = ([weight for weight in weights if weight.ndim > 1] for weights in (hidden, own))
    assert np.mean([share_found(weight, on_device) for weight in own]) > 0.75
    assert np.mean([share_found(weight, on_worker) for weight in hidden]) > 0.75
    _, own = weights_of(model, nodes_after(model, first or cut))
    assert np.mean([share_found(weight, on_worker) for weight in own if weight.ndim > 1]) < 0.25


RUN = 16
"""Neighboring values of a column. Kernels keep them together or interleave few of them."""


def runs(weight: Array) -> list[bytes]:
    """Runs of a weight (depth, columns) of 8 or 16 bits as kernels pack it: one row, one column, and groups of 2 and 4
    of the depth; in both byte orders, and as float32."""
    parts = [weight[0, :RUN], weight[:RUN, 0], *(weight[:g, :RUN].T for g in (2, 4))]
    forms = [np.ascontiguousarray(part) for part in parts]
    wide = [form.astype("f4") for form in forms] if weight.dtype.itemsize > 1 else []
    return [
        raw for form in (*forms, *wide) for raw in (form.tobytes(), form.view(f"u{form.itemsize}").byteswap().tobytes())
    ]


def assert_runs_sealed(compiled: Compiled, hidden: Sequence[Array], own: Sequence[Array]) -> None:
    """Assert that no run of the hidden weights, of 8 or 16 bits, is in the device bundle: so narrow values alone are in
    any library."""
    device, worker = contents(compiled.device), contents(compiled.subgraphs[0])
    for weight in hidden:
        assert not any(piece in device for piece in runs(weight))
        assert any(piece in worker for piece in runs(weight))  # the search finds what is there
    for weight in own:
        assert any(piece in device for piece in runs(weight))
