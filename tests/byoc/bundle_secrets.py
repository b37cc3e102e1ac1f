"""Search a device bundle for what it must not have."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from zmq_offload.compile import Compiled
from zmq_offload.compile.importer import read_onnx, simplify


def contents(folder: Path) -> bytes:
    return b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def weights_of(path: Path, nodes_behind: set[str]) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Weights of the offloaded nodes (by output name) and of the others, each as it may lie in memory: as it is and
    transposed. Weights on both sides are neither."""
    model = simplify(read_onnx(path))
    values: dict[str, np.ndarray[Any, Any]] = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    # Weights of few different values (0, 1, epsilon) may stand in any library.
    telling = {n for n, v in values.items() if v.nbytes >= 16 and len(np.unique(v)) >= 4}
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for node in model.graph.node:
        used[node.output[0] in nodes_behind].update(node.input)

    def forms(names: set[str]) -> list[list[bytes]]:
        return [list(dict.fromkeys((values[n].tobytes(), values[n].T.tobytes()))) for n in sorted(names)]

    return forms(telling & used[True] - used[False]), forms(telling & used[False] - used[True])


def behind(model: onnx.ModelProto, cut: str) -> set[str]:
    reached = {cut}
    for node in model.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    return reached - {cut}


def check_secrets(path: Path, compiled: Compiled, cut: str) -> None:
    """No weight of the part behind `cut` is in the device bundle, whole or begun or ended."""
    device, subgraph = contents(compiled.device), contents(compiled.subgraphs[0])
    hidden, own = weights_of(path, behind(simplify(read_onnx(path)), cut))
    assert hidden and own
    for weight in itertools.chain(*hidden):
        for piece in (weight, weight[:16], weight[-16:]):
            # (0, -1), say, begins a shape and stands in any library, too.
            assert len(set(piece)) < 8 or piece not in device
    # The search means something: each side's own weights are found.
    assert all(any(form in device for form in weight) for weight in own)
    assert all(any(form in subgraph for form in weight) for weight in hidden)
    assert not any(form in subgraph for form in itertools.chain(*own))
