"""TVM's passes for lowered functions, with what compiling needs otherwise: no checks, no bounds of symbolic extents."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm_ffi import structural_map

from zmq_offload.compile.arguments import CHECKS
from zmq_offload.schedules.images import opaque

TIR_PIPELINE = "zmq_offload"
"""The name by which TVM finds these passes."""

_SHRINKING = "s_tir.CompactBufferAllocation"
"""TVM's pass that shrinks buffers to what is read of them. Kernels declare theirs as large as they need them, and for
those of symbolic images its bounds of indices took minutes."""

_FLOATS = ("float32", "float64")
"""The types that kernels compute quotients of extents in."""


def _with_opaque_floats(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function, whose floats with names are calls. They compute the same, and cost nothing.

    TVM's pass LowerIntrin computes the bounds of all values with names, and fails for quotients of symbolic extents in
    floats, as a linear Resize has them. It asks for no bounds of a call.
    """

    def named(bind: tirx.Bind) -> tirx.Bind:
        return tirx.Bind(bind.var, opaque(bind.value)) if str(bind.value.ty) in _FLOATS else bind

    return function.with_body(structural_map(function.body, (tirx.Bind, named)))


def _passes() -> tuple[Pass, Callable[[], Pass], Callable[[], Pass]]:
    default, finish_host, finish_device = tvm.tirx.get_tir_pipeline("default")

    def lower(mod: tvm.IRModule, outer: PassContext) -> tvm.IRModule:
        with PassContext(outer.opt_level, outer.required_pass, [*outer.disabled_pass, _SHRINKING], [], outer.config):
            return default(mod)

    def without_assertions(mod: tvm.IRModule, _: PassContext) -> tvm.IRModule:
        kept = {name: f for name, f in mod.functions.items() if f.attrs is not None and CHECKS in f.attrs}
        bare = tirx.transform.SkipAssert()(mod)
        for name, function in kept.items():
            bare[name] = function
        return bare

    def opaque_floats(mod: tvm.IRModule, _: PassContext) -> tvm.IRModule:
        return tvm.IRModule({name: _with_opaque_floats(f) for name, f in mod.functions.items()}, attrs=mod.attrs)

    def finish() -> Pass:
        steps = [without_assertions, opaque_floats]
        return Sequential([*(module_pass(s, opt_level=0, name=s.__name__) for s in steps), finish_host()])

    return module_pass(lower, opt_level=0, name="zmq_offload.lower"), finish, finish_device


tirx.compilation_pipeline.register_tir_pipeline(TIR_PIPELINE, _passes)
