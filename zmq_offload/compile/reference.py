"""Run an ONNX file in ONNX Runtime, or in ONNX's own reference, and make random inputs for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from zmq_offload.compile.onnx.shapes import Dim, extent_of
from zmq_offload.errors import one_line
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY, TensorSpec

ROUNDS = 2
"""Random inputs for a model with symbolic dimensions. Each has other extents."""

EXTENTS = ((2, 64), (3, 96))
"""A symbolic extent in each round: at dimension 0, elsewhere."""

QUANTIZED_TOLERANCE = 5e-2
"""The difference that a quantized model may show, as a fraction of the largest value."""


BFLOAT16_TOLERANCE = 5e-2
"""The same for a model of bfloat16."""


class CannotRun(Exception):
    """The file cannot run here, or not on this input. The text says why."""


@dataclass(frozen=True)
class Reference:
    """A program that runs an ONNX file: its name, and a function from inputs by name to outputs by name."""

    name: str
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    most_operations: float
    """Floating-point operations that it computes in about a minute."""
    tolerance: float = 0.0
    """The least difference to allow, as a fraction of the largest value."""


def open_reference(path: str | os.PathLike[str]) -> Reference:
    """Open a file in ONNX Runtime, or in `onnx.reference` where that is not installed. Raises CannotRun."""
    try:
        import onnxruntime
    except ImportError:
        return _onnx_reference(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    # Without optimizations: they round differently, and some fused kernels lack attributes of the plain operators.
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
        return dict(zip(names, map(_usable, session.run(names, dict(feeds), quiet)), strict=True))

    return Reference(f"ONNX Runtime {onnxruntime.__version__}", run, 1e12, _tolerance(path))


def _tolerance(path: str | os.PathLike[str]) -> float:
    """A step of a quantized tensor is rounded the other way now and then, and what follows makes it larger. A reference
    rounds bfloat16, which has three digits, after each operator."""
    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    if any("Quantize" in n.op_type or n.op_type.startswith("Q") for n in graph.node):
        return QUANTIZED_TOLERANCE
    return BFLOAT16_TOLERANCE if any(w.data_type == onnx.TensorProto.BFLOAT16 for w in graph.initializer) else 0.0


def _usable(result: object) -> Array:
    """A result as the compiled model has it: NumPy has no bfloat16."""
    array = np.asarray(result)
    return array.astype(np.float32) if str(array.dtype) == "bfloat16" else array


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
        return dict(zip(evaluator.output_names, map(_usable, results), strict=True))

    return Reference(f"onnx.reference {onnx.__version__}", run, 1e9, _tolerance(path))


def random_inputs(
    model: onnx.ModelProto, specs: Sequence[TensorSpec], inputs: Mapping[str, Sequence[Dim]], round_: int
) -> dict[str, Array]:
    """Make a random array for each input, with values that the model can use.

    Floats come from a normal distribution; their absolute values are used if the model computes a logarithm, a square
    root or a power of them. Integers that index a weight are within its bounds, those of a mask are 0 or 1, bytes are 0
    to 255, others 0 to 9. Symbolic extents with the same name are equal.
    """
    generator = np.random.default_rng(round_)
    chosen: dict[str, int] = {}
    sample = {}
    for spec in specs:
        dims = inputs.get(spec.name) or ("?",) * len(spec.shape)
        shape = [_extent(dim, spec, axis, round_, chosen) for axis, dim in enumerate(dims)]
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


def _extent(name: Dim, spec: TensorSpec, axis: int, round_: int, chosen: dict[str, int]) -> int:
    """The extent of a dimension. A symbolic one is chosen once for each name, and once for all batches."""
    if spec.shape[axis] != ANY:
        return spec.shape[axis]
    usual = EXTENTS[round_][axis > 0]
    if name == "?":
        return chosen.setdefault("batch", usual) if axis == 0 else usual
    return extent_of(str(name), lambda symbol: chosen.setdefault(symbol, spec.usual(axis, usual)))


PASS_ON = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
"""Operators that do not change values."""


def _users(graph: onnx.GraphProto, name: str) -> list[tuple[onnx.NodeProto, int]]:
    """The nodes that use a tensor's values, each with the number of the input."""
    found, wanted = [], {name}
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used in wanted:
                found.append((node, index))
                if node.op_type in PASS_ON and index == 0:
                    wanted.update(node.output)
    return found


def _positive(users: Sequence[tuple[onnx.NodeProto, int]]) -> bool:
    return any(node.op_type in ("Log", "Sqrt", "Pow") and index == 0 for node, index in users)


def _bound(graph: onnx.GraphProto, users: Sequence[tuple[onnx.NodeProto, int]]) -> int | None:
    """The number of rows that a tensor of indices chooses from; None if unknown, or if it does not hold indices."""
    weights = {weight.name: weight for weight in graph.initializer}
    bounds = []
    for node, index in users:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type in ("Gather", "GatherElements") and index == 1 and node.input[0] in weights:
            bounds.append(int(weights[node.input[0]].dims[axis]))
        elif node.op_type == "OneHot" and index == 0 and node.input[1] in weights:
            bounds.append(int(onnx.numpy_helper.to_array(weights[node.input[1]]).reshape(-1)[0]))
    return max(1, min(bounds)) if bounds else None
