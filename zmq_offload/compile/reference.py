"""What an ONNX file means: its outputs as ONNX Runtime, or ONNX's own reference, computes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from zmq_offload.compile.importer import Dim
from zmq_offload.errors import one_line
from zmq_offload.protocol.tensors import ANY, TensorSpec

Array = np.ndarray[Any, Any]

ROUNDS = 2
"""How many random inputs are tried where dimensions are symbolic: with other extents each."""

EXTENTS = ((2, 64), (3, 96))
"""What a symbolic extent is in each round: at dimension 0, elsewhere."""


class CannotRun(Exception):
    """The file cannot be run here, or not on this input; the text says why."""


@dataclass(frozen=True)
class Reference:
    """Something that runs a file: its name, and a function of the inputs by name that gives the outputs by name."""

    name: str
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    most_operations: float
    """Floating-point operations that it does in a minute or so."""


def open_reference(path: str | os.PathLike[str]) -> Reference:
    """The file in ONNX Runtime where that is installed, in `onnx.reference` otherwise. Raises CannotRun."""
    try:
        import onnxruntime
    except ImportError:
        return _onnx_reference(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception, too
    # As the file has it: optimizations may compute other roundings, and some kernels know less than the plain ones.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CannotRun(f"ONNX Runtime cannot run the file: {one_line(error)}") from None
    names = [output.name for output in session.get_outputs()]
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, dict(feeds), quiet), strict=True))

    return Reference(f"ONNX Runtime {onnxruntime.__version__}", run, 1e12)


def _onnx_reference(path: str | os.PathLike[str]) -> Reference:
    try:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(os.fspath(path))
    except Exception as error:
        raise CannotRun(f"onnx.reference cannot run the file: {one_line(error)}") from None

    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = evaluator.run(None, dict(feeds))
        return dict(zip(evaluator.output_names, map(np.asarray, results), strict=True))

    return Reference(f"onnx.reference {onnx.__version__}", run, 1e9)


def random_inputs(
    model: onnx.ModelProto, specs: Sequence[TensorSpec], inputs: Mapping[str, Sequence[Dim]], round_: int
) -> dict[str, Array]:
    """One input of each tensor, of a kind that the model can take.

    Floats are from a normal distribution, positive where a logarithm, a square root or a power is taken of them.
    Integers are indices where they are used as such, 0 or 1 in what is called a mask, else 0 to 9; bytes are 0 to 255.
    Symbolic extents of one name are the same.
    """
    generator = np.random.default_rng(round_)
    chosen: dict[str, int] = {}
    sample = {}
    for spec in specs:
        dims = inputs.get(spec.name) or ("?",) * len(spec.shape)
        shape = [
            _extent(dim, d, axis, round_, chosen) for axis, (dim, d) in enumerate(zip(dims, spec.shape, strict=True))
        ]
        users = _users(model.graph, spec.name)
        if spec.dtype.kind == "f":
            values = generator.standard_normal(shape)
            sample[spec.name] = np.asarray(np.abs(values) if _positive(users) else values).astype(spec.dtype)
            continue
        bound = _bound(model.graph, users)
        if bound is None:
            small = spec.dtype.kind == "b" or "mask" in spec.name.lower()
            bound = 2 if small else 256 if spec.dtype == np.uint8 else 10
        sample[spec.name] = generator.integers(0, bound, shape).astype(spec.dtype)
    return sample


def _extent(name: Dim, extent: int, axis: int, round_: int, chosen: dict[str, int]) -> int:
    """An extent as the signature has it, or one for a symbolic one: the same for each name, and for each batch."""
    if extent != ANY:
        return extent
    usual = EXTENTS[round_][axis > 0]
    if name == "?":
        return chosen.setdefault("batch", usual) if axis == 0 else usual
    return chosen.setdefault(str(name), usual)


PLAIN = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
"""Operators that hand values on as they are."""


def _users(graph: onnx.GraphProto, name: str) -> list[tuple[onnx.NodeProto, int]]:
    """The nodes that use a tensor, or what is the same values, each with the number of the input."""
    found, wanted = [], {name}
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used in wanted:
                found.append((node, index))
                if node.op_type in PLAIN and index == 0:
                    wanted.update(node.output)
    return found


def _positive(users: Sequence[tuple[onnx.NodeProto, int]]) -> bool:
    return any(node.op_type in ("Log", "Sqrt", "Pow") and index == 0 for node, index in users)


def _bound(graph: onnx.GraphProto, users: Sequence[tuple[onnx.NodeProto, int]]) -> int | None:
    """How many rows there are for a tensor of indices to choose from; None if it is not one, or that is not known."""
    weights = {weight.name: weight for weight in graph.initializer}
    bounds = []
    for node, index in users:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type in ("Gather", "GatherElements") and index == 1 and node.input[0] in weights:
            bounds.append(int(weights[node.input[0]].dims[axis]))
        elif node.op_type == "OneHot" and index == 0 and node.input[1] in weights:
            bounds.append(int(onnx.numpy_helper.to_array(weights[node.input[1]]).reshape(-1)[0]))
    return max(1, min(bounds)) if bounds else None
