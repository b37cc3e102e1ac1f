"""Names inside TVM that the rules depend on and that TVM does not document.

tests/schedules/test_tvm_internals.py says which one changed when TVM moves.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import Call, Expr

SCHEDULED = "tirx.is_scheduled"
"""Attribute of a PrimFunc that already has a schedule: dlight and MetaSchedule set it, and skip functions with it."""

POOL_PADDING = "pad_temp"
"""Name of the buffer in which TOPI's pooling pads its input."""

IF_THEN_ELSE = tvm.ir.Op.get("prim.if_then_else")
"""The conditional expression that evaluates one side only; `Select` may evaluate both."""

CALL_PURE_EXTERN = "call_pure_extern"
"""Last part of the name of the operator that calls a C function without side effects."""

FUSABLE = 4
"""Value of a PrimFunc's attribute "op_pattern": element-wise operators may be fused after it, none before it."""

OPAQUE = 8
"""Value of the same attribute: nothing may be fused with it."""

REDUCE_AXIS: int = tirx.IterVar.CommReduce
"""Type of a block's axis that is reduced."""


def operator_name(expr: Expr) -> str:
    """Return the full name of the operator that `expr` calls, such as "relax.add"; "" if it calls none."""
    return str(getattr(expr.op, "name", "")) if isinstance(expr, Call) else ""


def last_part(name: str) -> str:
    """Return a name without its namespace, which is "tirx", "prim" or "relax.nn", for example."""
    return name.rsplit(".", 1)[-1]
