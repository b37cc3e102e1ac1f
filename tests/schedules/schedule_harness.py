"""Small ONNX graphs, compiled with the CPU schedules and compared with ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.target import codegen

from zmq_offload.compile.pipeline import cpu_pipeline
from zmq_offload.compile.target import host_target

Array = np.ndarray[Any, Any]


class _NoWarnings(logging.Handler):
    """Turns the warning of a rule that fails into an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage())


logging.getLogger("zmq_offload.schedules").addHandler(_NoWarnings(logging.WARNING))

HOST = host_target()
# The vector widths that this host can run: its own, and those of older CPUs of its kind.
_NARROWER = {"x86-64-v3": "avx2", "x86-64": "sse2"}
TARGETS = [HOST] + [
    tvm.target.Target({"kind": "llvm", "mcpu": name, "num-cores": 2})
    for name, feature in _NARROWER.items()
    if feature in map(str, codegen.llvm_get_cpu_features(HOST))
]


@dataclass
class Net:
    """An ONNX graph under construction; every value is float32 unless it says otherwise."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=dict)
    dynamic_batch: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.rng.standard_normal(shape).astype("float32")
        return name

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype("float32"))

    def constant(self, value: Array | float | Sequence[int]) -> str:
        array = np.asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float32)
        if isinstance(value, list | tuple):
            array = np.asarray(value, dtype="int64")
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, *outputs: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        def shape(array: Array) -> list[int | str]:
            return ["batch", *array.shape[1:]] if self.dynamic_batch else list(array.shape)

        graph = helper.make_graph(
            self.nodes,
            "net",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), shape(a))
                for n, a in self.inputs.items()
            ],
            [helper.make_tensor_value_info(n, kind, None) for n in outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return onnx.shape_inference.infer_shapes(model)

    def check(
        self,
        *outputs: str,
        target: tvm.target.Target = HOST,
        tolerance: float = 1e-4,
        kind: int = TensorProto.FLOAT,
    ) -> None:
        """Compile, run and compare; relative to the largest value of an output. `kind` is the outputs' datatype."""
        model = self.model(*outputs, kind=kind)
        expected = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, self.inputs
        )
        run = compiled(from_onnx(model, keep_params_in_input=False), target)
        for got, want in zip(run(*self.inputs.values()), expected, strict=True):
            close(got, want, tolerance)


def compiled(mod: tvm.IRModule, target: tvm.target.Target = HOST) -> Any:
    """A function from arrays to a list of arrays."""
    vm = relax.VirtualMachine(tvm.compile(mod, target, relax_pipeline=cpu_pipeline(target)), tvm.cpu())

    def run(*inputs: Array) -> list[Array]:
        out = vm["main"](*(tvm.runtime.tensor(i) for i in inputs))
        return [o.numpy() for o in ([out] if hasattr(out, "numpy") else out)]

    return run


def close(got: Array, want: Array, tolerance: float = 1e-4) -> None:
    """Check that results are equal up to rounding, with NaN and infinities at the same places."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    if want.dtype == bool:
        np.testing.assert_array_equal(got, want)
        return
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    if finite.any():
        scale = max(float(np.abs(want[finite]).max()), 1e-3)
        assert float(np.abs(got[finite] - want[finite]).max()) <= tolerance * scale
