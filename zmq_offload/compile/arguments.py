"""Check the arguments of a library's `main` once, at its entry.

TVM has every function check its arguments, which is most of the code of a function with many of them. The virtual
machine checks those of `main` as far as shapes and datatypes go. The rest is checked by a function that computes
nothing: a tensor with strides or with an unaligned address is refused, from which kernels would read other elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import ir, relax, tirx

ALIGNMENT = 64
"""Bytes. Kernels read vectors of up to this size, from addresses that are multiples of it."""

CHECKS = "zmq_offload_checks"
"""Attribute of the function that checks. `lowering` leaves its checks in."""


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
    return function.with_attr(CHECKS, True).with_attr("tirx.noalias", False)
