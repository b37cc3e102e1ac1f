"""Check the arguments of a library once, at its entries.

TVM has every function check its arguments, which is most of the code of a function with many of them. The virtual
machine checks those of an entry as far as shapes and datatypes go. The rest is checked by a function that computes
nothing: a tensor with strides or with an unaligned address is refused, from which kernels would read other elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import ir, relax, tirx

from zmq_offload.byoc.joined import is_entry

ALIGNMENT = 64
"""Bytes. Kernels read vectors of up to this size, from addresses that are multiples of it."""

CHECKS = "zmq_offload_checks"
"""Attribute of the function that checks. `lowering` leaves its checks in."""


def with_checks(mod: tvm.IRModule) -> tvm.IRModule:
    """The module, of calls of lowered functions, with a check of the arguments of each entry."""
    entries = {gv: f for gv, f in mod.functions.items() if isinstance(f, relax.Function) and is_entry(gv, f)}
    builder = relax.BlockBuilder(mod)
    # Equal checks become one function.
    checks = {gv: builder.add_func(_check(t), "check_arguments") for gv, f in entries.items() if (t := _tensors(f))}
    if not checks:
        return mod
    checked = builder.get()
    nothing = relax.TupleType([])
    for gv, check in checks.items():
        entry = entries[gv]
        call = relax.VarBinding(relax.Var("checked", nothing), ir.Call(check, _tensors(entry), ret_ty=nothing))
        body = relax.SeqExpr([relax.BindingBlock([call]), *entry.body.blocks], entry.body.body)
        checked[gv] = relax.Function(entry.params, body, entry.ret_ty, entry.is_pure, entry.attrs)
    return checked if mod.attrs is None else checked.with_attrs(mod.attrs)


def _tensors(function: relax.Function) -> list[ir.Var]:
    """The parameters that have a shape."""
    return [
        p for p in function.params if isinstance(p.ty, relax.TensorType) and isinstance(p.ty.shape, relax.ShapeExpr)
    ]


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
