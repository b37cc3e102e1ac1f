"""Functions to schedule for GPUs, small networks of one operator and what follows it, and their results on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir.transform import Sequential

from tests.support.gpu_kernels import lowered
from tests.support.gpu_on_cpu import run_on_cpu
from zmq_offload.compile.cuda.names import gpu_target
from zmq_offload.compile.cuda.pipeline import graph_passes

TARGET = gpu_target("cuda-sm80")

Build = Callable[..., relax.Expr]


def module_of(shapes: Sequence[Sequence[int]], build: Build, dtype: str = "float32") -> tvm.IRModule:
    """A module whose main is `build(emit, *inputs)`."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{n}", relax.TensorType(list(shape), dtype)) for n, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(build(builder.emit, *inputs))
        builder.emit_func_output(result)
    return builder.get()


def weights(*shape: int, dtype: str = "float32", scale: float = 1.0) -> relax.Expr:
    values = np.random.default_rng(len(shape) + shape[0]).standard_normal(shape) * scale
    return relax.const(values.astype(dtype), dtype)


def functions(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The fused functions of a module, by name."""
    with TARGET:
        mod = Sequential(graph_passes(TARGET))(mod)
    return {gv.name_hint: f for gv, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}


def function_of(shapes: Sequence[Sequence[int]], build: Build, dtype: str = "float32") -> tirx.PrimFunc:
    """The only fused function of what `build` makes."""
    (function,) = functions(module_of(shapes, build, dtype)).values()
    return function


def differences(function: tirx.PrimFunc, scheduled: tirx.PrimFunc) -> list[float]:
    """How far the scheduled kernels are from the function as a CPU computes it, relative to the largest value: with the
    first thread of a block first, and with the last first."""
    kernels = lowered(scheduled, TARGET)
    rng = np.random.default_rng(0)
    *given, (_, shape, dtype) = kernels.parameters
    inputs = [
        (rng.standard_normal(extents) if np.dtype(kind).kind == "f" else rng.integers(0, 4, extents)).astype(kind)
        for _, extents, kind in given
    ]
    tensors = [tvm.runtime.tensor(array) for array in (*inputs, np.zeros(shape, dtype))]
    host = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.tirx.build(host, tvm.target.Target("llvm"))["main"](*tensors)
    right = tensors[-1].numpy().astype(np.float64)
    found = [run_on_cpu(kernels, inputs, reverse=reverse)[-1].astype(np.float64) for reverse in (False, True)]
    return [float(np.abs(one - right).max() / max(np.abs(right).max(), 1e-9)) for one in found]
