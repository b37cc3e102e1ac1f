"""Names and values inside TVM that the passes depend on and that TVM does not document.

tests/byoc/test_tvm_internals.py says which one changed when TVM moves.
"""

from __future__ import annotations

import tvm
from tvm import ir, relax

CODEGEN_ATTRIBUTE = "Codegen"
"""Attribute of a Relax function: the BYOC backend that RunCodegen hands it to."""

CALL_TIR = "relax.call_tir"
CALL_PACKED = "relax.call_dps_packed"


def codegen_of(function: ir.BaseFunc) -> str | None:
    """Return the BYOC backend of a function; None if it has none."""
    backend = function.attrs.get(CODEGEN_ATTRIBUTE) if function.attrs else None
    return None if backend is None else str(backend)


def is_call_of(value: relax.Expr, operator: str) -> bool:
    """Return whether an expression is a call of an operator."""
    return isinstance(value, ir.Call) and isinstance(value.op, ir.Op) and value.op.name == operator


def unfusable(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Return a PrimFunc that FuseOps fuses with no other: its OpPatternKind is kOpaque, 8."""
    return function.with_attr("op_pattern", 8)


def without_constants(mod: tvm.IRModule, attrs: ir.DictAttrs | None) -> tvm.IRModule:
    """Return a module after RunCodegen with `attrs` for its own.

    RunCodegen adds the weights of the functions that it removed as the attribute `const_name_to_constant`, and TVM
    would export them with the library.
    """
    return tvm.IRModule(mod.functions, attrs=attrs)
