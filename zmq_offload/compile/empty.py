"""Constants without elements, which TVM saves but cannot load: they are made when the model runs."""

from __future__ import annotations

import tvm
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def without_empty_constants(mod: tvm.IRModule) -> tvm.IRModule:
    """Replace the constants without elements in Relax functions by tensors that the functions allocate."""
    found = [gv for gv, f in mod.functions.items() if isinstance(f, relax.Function) and _has_empty(f)]
    if not found:
        return mod
    maker = _Maker(mod)
    for gv in found:
        maker.builder_.update_func(gv, maker.visit_expr(mod[gv]))
    made = maker.builder_.get()
    return made if mod.attrs is None else made.with_attrs(mod.attrs)


def _has_empty(function: relax.Function) -> bool:
    found: list[relax.Expr] = []
    relax.analysis.post_order_visit(function, lambda e: found.append(e) if _is_empty(e) else None)
    return bool(found)


def _is_empty(expr: relax.Expr) -> bool:
    # A datatype is such a constant, too.
    return isinstance(expr, ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor) and 0 in expr.value.shape


@mutator
class _Maker(PyExprMutator):  # type: ignore[misc]  # TVM has no types
    def visit_generic_const_(self, constant: ir.GenericConst) -> relax.Expr:
        if not _is_empty(constant):
            return constant
        shape = relax.ShapeExpr(constant.value.shape)
        return self.builder_.emit(relax.op.builtin.alloc_tensor(shape, str(constant.ty.dtype.dtype), 0))
