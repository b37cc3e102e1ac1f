"""ONNX's own operator tests: each is a model of one node, with inputs and the right outputs."""

from __future__ import annotations

import functools
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import helper, numpy_helper
from tvm.runtime import vm

from zmq_offload.compile.build import build
from zmq_offload.compile.onnx.importer import import_onnx
from zmq_offload.compile.target import host_target
from zmq_offload.errors import Internal, OffloadError

Array = np.ndarray[Any, Any]

RIGHT, REFUSED, DIFFERS, CRASH = "right", "refused", "differs", "crash"


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}


@dataclass(frozen=True)
class Outcome:
    kind: str
    detail: str = ""


@functools.cache
def cases() -> tuple[Case, ...]:
    """All of ONNX's node tests whose inputs and outputs are tensors of numbers or booleans."""
    for test in _loaded():
        _renew(test.model)
    return tuple(case for test in _loaded() for case in _of(test))


def without_numbers() -> int:
    """How many of ONNX's node tests have other inputs or outputs: text, sequences, optional values."""
    return sum(not any(True for _ in _of(test)) for test in _loaded())


@functools.cache
def _loaded() -> tuple[Any, ...]:
    from onnx.backend.test.case import base
    from onnx.backend.test.loader import load_model_tests
    from onnx.reference.ops import op_pool_common

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # loading computes the right outputs, infinities included
        # It also formats the tests' source as documentation, and pools volumes of 32³ one window after the other.
        patch.setattr(base, "process_snippet", lambda *_: ("", ""))
        patch.setattr(op_pool_common, "pool", functools.partial(_pooled, op_pool_common.pool))
        return tuple(load_model_tests(kind="node"))


def _pooled(
    original: Callable[..., Array],
    padded: Array,
    x_shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    out_shape: Sequence[int],
    *rest: Any,
    **options: Any,
) -> Array:
    """What `original` computes: many windows at once if all of them lie inside. NaN is padding."""
    bound = inspect.signature(original).bind(padded, x_shape, kernel, strides, out_shape, *rest, **options)
    bound.apply_defaults()
    given = bound.arguments
    dilations = given["dilations"] or [1] * len(kernel)
    wide = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    last = [(n - 1) * s for n, s in zip(out_shape, strides, strict=True)]
    # `original` reads nothing beyond this, though `padded` may be larger.
    pads = np.reshape(given["pads"] if given["pads"] is not None else [0] * 2 * len(kernel), (2, -1)).sum(0)
    ends = np.minimum(np.add(x_shape[2:], pads), padded.shape[2:])
    fits = all(at + w <= end for at, w, end in zip(last, wide, ends, strict=True))
    if np.prod(out_shape) < 500 or not fits:
        return original(*bound.args, **bound.kwargs)
    windows = np.lib.stride_tricks.sliding_window_view(padded, wide, tuple(range(2, padded.ndim)))
    steps = [slice(0, at + 1, s) for at, s in zip(last, strides, strict=True)]
    taken = (slice(None), slice(None), *steps, *(slice(None, None, d) for d in dilations))
    windows = windows[taken]
    axes, counts = tuple(range(-len(kernel), 0)), given["count_include_pad"]
    if given["pooling_type"] == "MAX":
        pooled = np.nanmax(windows, axes)
    elif given["pooling_type"] == "AVG":
        pooled = (np.mean if counts else np.nanmean)(windows, axes)
    else:
        pooled = (np.sum if counts else np.nansum)(np.abs(windows) ** given["p"], axes) ** (1 / given["p"])
    return np.asarray(pooled).astype(padded.dtype)


def _renew(model: onnx.ModelProto) -> None:
    """Raise an older model to opset 11 if its operators have not changed since; older opsets are not imported."""
    (opset,) = [o for o in model.opset_import if o.domain in ("", "ai.onnx")] or [onnx.OperatorSetIdProto(version=11)]
    if opset.version < 11 and all(
        onnx.defs.has(node.op_type) and onnx.defs.get_schema(node.op_type, 11).since_version <= opset.version
        for node in model.graph.node
    ):
        opset.version = 11


def _of(test: Any) -> Iterator[Case]:
    for number, (inputs, outputs) in enumerate(test.data_sets):
        if all(
            isinstance(a, np.ndarray | np.generic) and np.asarray(a).dtype.kind not in "OUSc"
            for a in (*inputs, *outputs)
        ):
            name = test.name if number == 0 else f"{test.name}_{number}"
            arrays = tuple(map(np.asarray, inputs)), tuple(map(np.asarray, outputs))
            # The right outputs of a Fourier transform have the rounding errors of sums that cancel.
            atol = 1e-6 if any(node.op_type in ("DFT", "STFT") for node in test.model.graph.node) else test.atol
            yield Case(name, test.model, *arrays, test.rtol, max(atol, test.atol))


def outcome(case: Case, constant: bool) -> Outcome:
    """Import, compile and run a case; with `constant`, all inputs but the first are constants of the model."""
    model, fed = _given(case, constant)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            imported = import_onnx(path, {name: array.shape for name, array in fed.items()})
        assert len(imported.outputs) == len(case.outputs)
        order = [spec.name for spec in imported.inputs]
        library = build(imported.mod, host_target())
        result = vm.VirtualMachine(library, tvm.cpu())["main"](
            *(tvm.runtime.tensor(_as_float32(fed[name])) for name in order)
        )
        values = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        found = [v.numpy() for v in values[: len(imported.graph.outputs)]]
    except Internal as error:
        return Outcome(CRASH, f"{type(error).__name__}: {error}")
    except OffloadError as error:
        return Outcome(REFUSED, str(error))
    except Exception as error:
        return Outcome(CRASH, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    for name, ours, right in zip((o.name for o in model.graph.output), found, case.outputs, strict=True):
        fault = difference(ours, right, case.rtol, case.atol)
        if fault:
            return Outcome(DIFFERS, f"{name}: {fault}")
    return Outcome(RIGHT)


def _as_float32(array: Array) -> Array:
    """An array as a compiled model takes it: NumPy has no bfloat16."""
    return array.astype(np.float32) if str(array.dtype) == "bfloat16" else array


def difference(ours: Array, right: Array, rtol: float, atol: float) -> str | None:
    """How an output differs from the right one; None if it does not."""
    if str(right.dtype) == "bfloat16":  # computed and returned as float32; the right one was rounded to 8 bits
        right, rtol, atol = _as_float32(right), max(rtol, 2**-7), max(atol, 2**-9)
    if ours.dtype != right.dtype:
        return f"datatype {ours.dtype}, right is {right.dtype}"
    if ours.shape != right.shape:
        return f"shape {ours.shape}, right is {right.shape}"
    if right.dtype.itemsize == 2 and right.dtype.kind == "f":
        rtol, atol = max(rtol, 2**-9), max(atol, 2**-11)  # two units in the last place: the order of sums differs
    a, b = (x.astype(np.float64) if x.dtype.kind not in "biu" else x for x in (ours, right))
    same = np.isclose(a, b, rtol, atol, equal_nan=True) if a.dtype.kind == "f" else a == b
    if same.all():
        return None
    at = np.flatnonzero(~same.ravel())[:4]
    return f"{(~same).sum()} of {same.size} elements, {a.ravel()[at]}, right is {b.ravel()[at]}"


def _given(case: Case, constant: bool) -> tuple[onnx.ModelProto, dict[str, Array]]:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    weights = {w.name for w in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in weights]
    fed = dict(zip(names, case.inputs, strict=True))
    if constant:
        for name in names[1:]:
            model.graph.initializer.append(numpy_helper.from_array(fed.pop(name), name))
            model.graph.input.remove(next(i for i in model.graph.input if i.name == name))
    return model, fed


def run(nodes: list[onnx.NodeProto], x: Array, constants: dict[str, Array], opset: int = 17) -> Case:
    """A case of nodes from `x` to `y`, with the result of ONNX Runtime as the expected one."""
    import onnxruntime

    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )
    model = onnx.shape_inference.infer_shapes(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = tuple(session.run(None, {"x": x}))
    # ONNX infers no datatype for the operators of another domain.
    model.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(results[0].dtype)
    return Case("own", model, (x,), results, 1e-4, 1e-5)


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")
