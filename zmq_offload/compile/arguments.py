"""Check the arguments of a library's `main` once, at its entry.

TVM has every function check its arguments, which is most of the code of a function with many of them. The virtual
machine checks those of `main` as far as shapes and datatypes go. The rest is checked by a function that computes
nothing: a tensor with strides or with an unaligned address is refused, from which kernels would read other elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import ir, relax, tirx
from tvm.ir.transform import Pass, PassContext, Sequential, module_pass
from tvm_ffi import structural_map

from zmq_offload.schedules.images import opaque

TIR_PIPELINE = "zmq_offload"
"""The name by which TVM finds the passes for lowered functions that leave out their checks."""

ALIGNMENT = 64
"""Bytes. Kernels read vectors of up to this size, from addresses that are multiples of it."""

_SHRINKING = "s_tir.CompactBufferAllocation"
"""TVM's pass that shrinks buffers to what is read of them. Kernels declare theirs as large as they need them, and for
those of symbolic images its bounds of indices took minutes."""

_FLOATS = ("float32", "float64")
"""The types that kernels compute quotients of extents in."""

_CHECKS = "zmq_offload_checks"
"""Attribute of the function that checks."""


def with_checks(mod: tvm.IRModule) -> tvm.IRModule:
    """The module, of calls of lowered functions, with a check of the arguments of `main`, if there is one."""
    main = next((f for g, f in mod.functions.items() if g.name_hint == "main"), None)
    if main is None:
        return mod
    tensors = [p for p in main.params if isinstance(p.ty, relax.TensorType) and isinstance(p.ty.shape, relax.ShapeExpr)]
    if not tensors:
        return mod
    builder = relax.BlockBuilder(mod)
    check = builder.add_func(_check(tensors), "check_arguments")
    checked = builder.get()
    nothing = relax.TupleType([])
    call = relax.VarBinding(relax.Var("checked", nothing), ir.Call(check, tensors, ret_ty=nothing))
    body = relax.SeqExpr([relax.BindingBlock([call]), *main.body.blocks], main.body.body)
    checked["main"] = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    return checked if mod.attrs is None else checked.with_attrs(mod.attrs)


def _check(params: Sequence[ir.Var]) -> tirx.PrimFunc:
    """A function of tensors, which TVM has check them, and that checks their addresses."""
    buffers, body = [], []
    for param in params:
        # Extents of their own: the virtual machine has compared those that have to be equal.
        dims = [
            dim if isinstance(dim, tirx.IntImm) else tirx.Var(f"extent{axis}", "int64")
            for axis, dim in enumerate(param.ty.shape.values)
        ]
        kind = str(param.ty.dtype.dtype)
        # LLVM must not take for granted what is checked here.
        buffer = tirx.decl_buffer(dims, kind, name=param.name, data_alignment=1)
        address = tirx.address_of(buffer[tuple(tirx.const(0, "int64") for _ in dims)])
        low = tirx.call_llvm_pure_intrin("handle", "llvm.ptrmask", address, tirx.const(ALIGNMENT - 1, "int64"))
        message = [ir.StringImm(f"the memory of {param.name} is not aligned to {ALIGNMENT} bytes; copy it")]
        body.append(tirx.AssertStmt(tirx.isnullptr(low), ir.StringImm("ValueError"), message))
        buffers.append(buffer)
    function = tirx.PrimFunc(buffers, tirx.SeqStmt(body) if len(body) > 1 else body[0])
    return function.with_attr(_CHECKS, True).with_attr("tirx.noalias", False)


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
        kept = {name: f for name, f in mod.functions.items() if f.attrs is not None and _CHECKS in f.attrs}
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
