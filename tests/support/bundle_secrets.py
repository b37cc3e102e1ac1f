"""Search a device bundle for what it must not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from zmq_offload.compile import Compiled
from zmq_offload.compile.importer import read_onnx, simplify

Array = np.ndarray[Any, Any]


def contents(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def weights_of(path: Path, nodes_behind: set[str]) -> tuple[list[Array], list[Array]]:
    """Weights of the offloaded nodes (by output name) and of the others. Weights on both sides are neither."""
    model = simplify(read_onnx(path))
    values: dict[str, Array] = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    # Weights of few different values (0, 1, epsilon) may stand in any library.
    telling = {n for n, v in values.items() if v.dtype == np.float32 and len(np.unique(v)) >= 4}
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for node in model.graph.node:
        used[node.output[0] in nodes_behind].update(node.input)
    hidden, own = telling & used[True] - used[False], telling & used[False] - used[True]
    return [values[n] for n in sorted(hidden)], [values[n] for n in sorted(own)]


def words(content: bytes) -> Array:
    """All that four bytes in a row are anywhere in `content`, sorted."""
    shifted = [content[at : at + (len(content) - at) // 4 * 4] for at in range(4)]
    return np.unique(np.concatenate([np.frombuffer(part, "u4") for part in shifted]))


def found(weight: Array, content: Array) -> float:
    """The share of a weight's values that stand anywhere in a file of these `words`: weights are packed, transposed and
    cut into tiles for the kernels, but their values stay."""
    values = np.unique(np.ascontiguousarray(weight).view("u4"))
    values = values[values & 0xFFFF != 0]  # round ones, 0.5 say, stand everywhere
    at = np.minimum(np.searchsorted(content, values), len(content) - 1)
    return float((content[at] == values).mean()) if len(values) else 0.0


def behind(model: onnx.ModelProto, cut: str) -> set[str]:
    reached = {cut}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached - {cut}


def check_secrets(path: Path, compiled: Compiled, cut: str) -> None:
    """No weight of the part behind `cut` is in the device bundle: not as a whole, not begun or ended, not its values in
    any order."""
    device = contents(compiled.device)
    on_device, on_worker = words(device), words(contents(compiled.subgraphs[0]))
    hidden, own = weights_of(path, behind(simplify(read_onnx(path)), cut))
    assert hidden and own
    for weight in hidden:
        for form in (weight.tobytes(), weight.T.tobytes()):
            for piece in (form, form[:16], form[-16:]):
                # (0, -1), say, begins a shape and stands in any library, too.
                assert len(set(piece)) < 8 or piece not in device
        # A four-byte value or two may stand in megabytes of others by chance.
        assert weight.size < 16 or found(weight, on_device) < 0.25
    # The search means something: each side's own weights are found. (Not each: some are scaled when they are folded.)
    assert np.mean([found(weight, on_device) for weight in own]) > 0.75
    assert np.mean([found(weight, on_worker) for weight in hidden]) > 0.75
    assert np.mean([found(weight, on_worker) for weight in own]) < 0.25
